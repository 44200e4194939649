package bench

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// work is one thing to measure.
type work struct {
	name         string
	about        string // what is done, for the report; %d is the number of operations where there is one
	writes       bool   // it changes the mount: it runs once on a fresh upper branch, with caches warm
	changesLower bool   // it changes what is in lower branches
	needsBig     bool   // it uses the large file
	needsProject bool   // it uses what makeProject makes
	alone        bool   // it writes, and gets a mount of its own
	coldOnly     bool   // it makes no sense with warm caches
	// prepare runs before the measurement, every time; may be nil.
	prepare func(*session) error
	// run is what is measured. It returns the number of operations.
	run func(*session) (int, error)
}

// session is one measurement on a mount.
type session struct {
	rootFD int
	root   string
	tree   *catalogue
	sizes  sizes
	files  []string // the sample of regular files that works use
	nonce  string   // differs for each run, so that names can be made that were never asked for
	stop   *atomic.Bool
	// created says what the names of the files made by "create" begin with, "" if there are none.
	created string
}

// whenStopped calls f once the session is stopped, unless the caller ends that before.
func (s *session) whenStopped(f func()) (end func()) {
	done := make(chan struct{})
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if s.stop.Load() {
					f()
					return
				}
			}
		}
	}()
	return func() { close(done) }
}

// sizes are the numbers of operations.
type sizes struct {
	Sample  int   `json:"sample"`  // files that are looked up, opened and read
	Create  int   `json:"create"`  // files made, renamed, removed
	Change  int   `json:"change"`  // lower files changed or removed
	Appends int   `json:"appends"` // of 100 bytes
	Write   int64 `json:"write"`   // bytes written to one file
	Random  int   `json:"random"`  // random reads of 4 KiB
	Big     int64 `json:"big"`     // bytes of the large file
	Sources int   `json:"sources"` // files in C that are built
	Tracked int   `json:"tracked"` // files that git status looks at
}

// scratchName is the directory in the root of a mount in which works make files.
const scratchName = "bench-scratch"

// errStopped is why a work ended early: it was interrupted, or took longer than it may.
var errStopped = errors.New("stopped")

func (s *session) stopped() error {
	if s.stop.Load() {
		return errStopped
	}
	return nil
}

// works lists what can be measured, in the order in which it is done and reported.
func works() []*work {
	return []*work{
		{name: "walk", about: "list every directory and stat every entry", run: walk},
		{name: "walk-parallel", about: "list every directory and stat every entry, by 8 threads at once", run: walkParallel},
		{name: "readdir", about: "list every directory", run: readDirs},
		{name: "stat", about: "stat %d files", run: statFiles},
		{name: "negative", about: "look up %d names that don't exist, for the first time", run: lookupMissing},
		{name: "open-read", about: "open, read and close %d files", run: readFiles},
		{name: "walk-read", about: "walk, then open, read and close %d files", coldOnly: true, run: walkAndRead},
		{name: "seqread", about: "read the large file from start to end", needsBig: true, run: readBig},
		{name: "randread", about: "read %d blocks of 4 KiB at random offsets of the large file", needsBig: true, run: readBigRandomly},
		{name: "tar", about: "tar -c of the root, through a pipe", run: tarRoot},
		{name: "git-status", about: "git status of a work tree, the second one", writes: true, needsProject: true, prepare: warmStatus, run: gitStatus},
		{name: "build", about: "make -j2 of a project in C, by gcc", writes: true, needsProject: true, prepare: prepareBuild, run: buildProject},
		{name: "create", about: "create %d files of 4 KiB", writes: true, prepare: makeScratch, run: createFiles},
		{name: "rename", about: "rename %d new files", writes: true, prepare: needCreated, run: renameFiles},
		{name: "unlink", about: "remove %d new files", writes: true, prepare: needCreated, run: unlinkFiles},
		{name: "append", about: "append 100 bytes %d times", writes: true, prepare: makeScratch, run: appendBytes},
		{name: "seqwrite", about: "write a new file from start to end", writes: true, prepare: makeScratch, run: writeBig},
		{name: "chmod", about: "chmod %d files of lower branches", writes: true, changesLower: true, prepare: warmSample, run: chmodLower},
		{name: "copyup", about: "append one byte to each of %d small files of lower branches", writes: true, changesLower: true, prepare: warmSample, run: copyUp},
		{name: "delete", about: "remove %d files of lower branches", writes: true, changesLower: true, prepare: warmSample, run: deleteLower},
		{name: "touch-big", about: "write one byte into the large file of the lowest branch", writes: true, changesLower: true, needsBig: true, run: touchBig},
		{name: "small", about: "look up %d missing names and make as many files", writes: true, alone: true, prepare: makeScratch, run: smallThings},
		{name: "beside-copyup", about: "the same, while one byte is written into the large file of the lowest branch", writes: true, changesLower: true, needsBig: true, alone: true, prepare: makeScratch, run: besideCopyUp},
	}
}

// WorkNames lists what can be measured over branches.
func WorkNames() []string {
	var names []string
	for _, w := range works() {
		names = append(names, w.name)
	}
	return names
}

func chooseWorks(names []string) ([]*work, error) {
	var chosen []*work
	for _, w := range works() {
		if slices.Contains(names, w.name) {
			chosen = append(chosen, w)
		}
	}
	known := WorkNames()
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("unknown work %q; known are %s", name, strings.Join(known, ", "))
		}
	}
	return chosen, nil
}

// open opens a file of the mount, by its name.
func (s *session) open(name string, flags int, mode uint32) (int, error) {
	fd, err := unix.Openat(s.rootFD, name, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	return fd, nil
}
