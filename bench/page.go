package bench

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"time"
)

//go:embed page.html
var pageTemplate string

// page is what page.html shows.
type page struct {
	Report     *Report
	Earlier    *Report
	Compared   bool
	Changes    []changeRow
	Machine    string
	Variables  template.CSS
	Baseline   string
	Sections   []pageSection
	Tables     []pageTable
	Reasons    []string
	Command    string
	Tiles      []tile
	Glance     []glanceRow
	Goals      []goalRow
	Measured   int // goals
	Reached    int
	Percent    int
	Unmeasured int // goals
	Took       time.Duration
	Ahead      []behind
}

type pageSection struct {
	Short   string // for the list of sections
	Title   string
	Figures []pageFigure
}

type pageFigure struct {
	ID, Title, Subtitle string
	SVG                 template.HTML
}

type pageTable struct {
	Title  string
	Tree   string // what the branches hold
	Header []string
	Rows   [][]pageCell
}

type pageCell struct {
	Class, Value, Spread, Ratio string
}

type changeRow struct {
	Work, State, At, Peer, Then, Now, Change, Class, Verdict string
}

// WritePage writes a page with all plots and figures, which needs nothing besides itself. With an earlier report it says
// what changed since.
func (r *Report) WritePage(w io.Writer, earlier *Report) error {
	p := r.summary()
	p.Earlier, p.Compared = earlier, earlier != nil
	if earlier != nil {
		for _, c := range Compare(earlier, r) {
			if c.Beyond() {
				p.Changes = append(p.Changes, c.row())
			}
		}
	}
	for _, title := range sections() {
		section := pageSection{Short: shortTitle(title), Title: title}
		for _, f := range r.figures() {
			if f.section != title {
				continue
			}
			svg, err := f.svg()
			if err != nil {
				return err
			}
			// Not from outside: it was drawn here, and its texts are escaped.
			section.Figures = append(section.Figures, pageFigure{f.id, f.title, f.subtitle, template.HTML(svg)})
		}
		if len(section.Figures) > 0 {
			p.Sections = append(p.Sections, section)
		}
	}
	t, err := template.New("page").Parse(pageTemplate)
	if err != nil {
		return err
	}
	return t.Execute(w, p)
}

// summary is all of a page but its plots and changes.
func (r *Report) summary() page {
	p := page{
		Report: r, Machine: r.Machine.String(), Variables: template.CSS(themeVariables()), Baseline: r.baselineNames(),
		Tables: r.pageTables(), Reasons: r.reasons(), Command: commandLine(r.Command),
		Tiles: r.tiles(), Glance: r.glance(), Goals: r.goals(), Ahead: r.peersAhead(),
		Took: time.Duration(r.Seconds * float64(time.Second)).Round(time.Second),
	}
	p.Measured, p.Reached = reached(p.Goals)
	p.Unmeasured = len(p.Goals) - p.Measured
	p.Percent = 100 * p.Reached / max(1, p.Measured)
	return p
}

func (m Machine) String() string {
	return fmt.Sprintf("%s, %d CPUs, %s of memory, %s, Linux %s, %s; load %s when it started",
		m.CPU, m.CPUs, humanSize(m.Memory), m.System, m.Kernel, m.FileSystem, m.Load)
}

// pageTables makes a table for each benchmark.
func (r *Report) pageTables() []pageTable {
	var tables []pageTable
	bench := ""
	for _, key := range r.keys() {
		peers := r.peersOf(key.Bench)
		if key.Bench != bench {
			bench = key.Bench
			header := append([]string{"work", "state", strings.ToLower(paramTitle(bench))}, peers...)
			tables = append(tables, pageTable{Title: benchTitle(bench), Tree: r.treeOf(bench), Header: header})
		}
		row := []pageCell{{Value: key.Work}, {Value: key.State, Class: "text"}, {Value: key.paramText()}}
		for _, peer := range peers {
			row = append(row, r.pageCell(key, peer))
		}
		last := &tables[len(tables)-1]
		last.Rows = append(last.Rows, row)
	}
	return tables
}

func shortTitle(title string) string {
	short, _, _ := strings.Cut(title, ":")
	return short
}

// treeOf says what the branches of a benchmark hold, "" if it has none.
func (r *Report) treeOf(bench string) string {
	if tree := r.Trees[bench]; tree != "" || !(Key{Bench: bench}).ofUnions() {
		return tree
	}
	return r.Tree
}

// benchTitle says what a benchmark is about.
func benchTitle(bench string) string {
	switch bench {
	case "depth":
		return "Few works, many numbers of branches"
	case "files":
		return "All works on a large tree"
	case "programs":
		return "Programs that people use"
	case "big":
		return "A large file"
	case "copyup":
		return "Writing one byte into a file of a lower branch"
	case "memory":
		return "Memory of servers"
	case benchHolder:
		return "What it costs that a mount outlives its server"
	case benchHolderCPU:
		return "The same in processor time, of the server and of who asks it"
	case "takeover":
		return "Longest wait for an answer when a server is killed"
	case "run":
		return "Starting containers"
	case "images":
		return "Images"
	case "volume":
		return "Volumes"
	}
	return bench
}

func (r *Report) pageCell(key Key, peer string) pageCell {
	m := r.find(key, peer)
	if m == nil || len(m.Values) == 0 {
		return pageCell{Value: r.cell(key, peer)}
	}
	c := pageCell{Value: valueText(m.Median(), m.Unit)}
	if lower, upper := m.Quartiles(); upper > lower {
		c.Spread = "±" + valueText((upper-lower)/2, m.Unit)
	}
	if ratio := r.toBaseline(key, peer); !math.IsNaN(ratio) {
		c.Ratio = ratioText(ratio)
		c.Class = ratioClass(ratio)
	}
	return c
}

// commandLine writes arguments as a shell would take them.
func commandLine(args []string) string {
	var quoted []string
	for _, arg := range args {
		if arg == "" || strings.ContainsAny(arg, " \t\n'\"\\$`*?[]{}()<>|&;#~!") {
			arg = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
		quoted = append(quoted, arg)
	}
	return strings.Join(quoted, " ")
}
