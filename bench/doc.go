// Package bench measures unions: how their cost grows with the number and the size of branches, and where unionfs stands
// beside the file systems and container tools that do the same job.
//
// It knows nothing that a user could not call. unionfs is measured by running its program; the peers by running theirs,
// or by the kernel's own mount calls. Every peer gets the same branches, its runs are interleaved with the others', and
// what it shows must be the same tree as theirs before a figure of it counts. What a peer can't do is reported as such
// and never left out in silence.
//
// [Depth] measures file systems over a growing number of branches. [Containers] measures what is built on them: starting
// a command, pulling an image, copying up, memory. Both fill a [Report], which is printed as a table, JSON or CSV, drawn
// as plots on one page, and compared with an earlier one.
package bench
