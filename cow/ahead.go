package cow

import (
	"sync"
)

// ahead reads directories that will probably be listed next, while whoever walks the tree looks at the one before: as the kernel
// reads ahead in files. On a host that has nothing in memory yet a walk is one wait for the disk after another, and this makes
// them wait at the same time.
//
// It goes by what is listed. A directory in one that was listed before means a walk, and then its neighbours are next. How many
// are read that nobody has listed yet is bounded by a window, which grows with every directory that was rightly guessed and
// closes when the guesses are wrong.
//
// mu is a leaf, held for moments.
type ahead struct {
	mu      sync.Mutex
	next    []aheadOf       // a stack, as most walks go down first
	unused  map[uint64]bool // IDs of directories that were read and not listed since
	window  int
	wrong   int // listings in a row that were not guessed while guesses were unused
	running int // goroutines
	closed  bool
	ended   sync.WaitGroup
}

// aheadOf is the directories in one directory that may be read.
type aheadOf struct {
	dir   uint64 // ID
	names []string
	attrs bool // the walk asks for attributes too
}

const (
	aheadStart   = 8  // first window
	aheadWindow  = 64 // largest
	aheadRunning = 6
	aheadLevels  = 64 // of the stack
	aheadWrong   = 32
)

// ReadsAhead reports whether it helps to tell the union by Listed what is read of a directory: not of an image, of which all is at
// hand anyway.
func (u *Union) ReadsAhead(dir *Node) bool {
	dir.mu.RLock()
	defer dir.mu.RUnlock()
	return dir.dir.loaded && !dir.dir.direct && len(dir.dir.sources) > 0
}

// Listed says that somebody lists dir, from its beginning if first is set, and found the directories subs in it; with attrs, that
// they ask for attributes too. The union may then read those directories before they are asked for.
func (u *Union) Listed(dir *Node, subs []string, first, attrs bool) {
	parent := u.Parent(dir).ID()
	a := &u.ahead
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return
	}
	if first {
		dir.dir.listed.Store(true)
		if a.unused[dir.id] {
			delete(a.unused, dir.id)
			a.window = min(2*a.window, aheadWindow)
			a.wrong = 0
		} else if a.wrong++; a.wrong >= aheadWrong && len(a.unused) > 0 {
			clear(a.unused)
			a.next, a.window, a.wrong = nil, 0, 0
		}
		if a.window == 0 {
			for i := range a.next {
				if a.next[i].dir == parent {
					a.window, a.wrong = aheadStart, 0
				}
			}
		}
	}
	if len(subs) > 0 {
		if last := len(a.next) - 1; last >= 0 && a.next[last].dir == dir.id {
			a.next[last].names = append(a.next[last].names, subs...)
		} else {
			if len(a.next) == aheadLevels {
				a.next = append(a.next[:0], a.next[1:]...)
			}
			// The first is what is asked for right now, or else the guess is wrong anyway.
			a.next = append(a.next, aheadOf{dir.id, subs[1:], attrs})
		}
	}
	for a.running < aheadRunning && a.running+len(a.unused) < a.window && len(a.next) > 0 {
		a.running++
		a.ended.Add(1)
		go u.readAhead()
	}
}

// readAhead reads directories as long as there are any to be read.
func (u *Union) readAhead() {
	a := &u.ahead
	defer a.ended.Done()
	var parent, read uint64
	for {
		a.mu.Lock()
		if read != 0 {
			a.unused[read] = true
			read = 0
		}
		for len(a.next) > 0 && len(a.next[len(a.next)-1].names) == 0 {
			// The levels above stay, so that a listing in them is seen to be part of the walk.
			a.next = a.next[:len(a.next)-1]
		}
		if a.closed || len(a.next) == 0 || a.running+len(a.unused) > a.window {
			a.running--
			a.mu.Unlock()
			return
		}
		of := &a.next[len(a.next)-1]
		name, attrs := of.names[0], of.attrs
		parent, of.names = of.dir, of.names[1:]
		a.mu.Unlock()
		read = u.readOneAhead(parent, name, attrs)
	}
}

// readOneAhead reads a directory, and has the host read the attributes of what is in it. It returns its ID, 0 if that wasn't
// needed.
func (u *Union) readOneAhead(parent uint64, name string, attrs bool) uint64 {
	dir := u.hold(parent)
	if dir == nil {
		return 0
	}
	defer u.Forget(dir, 1)
	var attr Attr
	n, err := u.Lookup(dir, name, &attr)
	if err != nil {
		return 0
	}
	defer u.Forget(n, 1)
	if !n.isDir() || n.dir.listed.Load() {
		return 0
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	// An error is for those to see who ask for the directory.
	if n.isRemoved() || u.load(n) != nil {
		return 0
	}
	if attrs {
		// What is loaded stays as it is, so no lock is needed.
		d := n.dir
		for i := range d.lower.ents {
			if n.dir.listed.Load() {
				break
			}
			if l, err := d.lowerAt(i); err == nil {
				_ = l.dir.Stat(l.entry, &attr)
			}
		}
	}
	if n.dir.listed.Load() {
		return 0
	}
	return n.id
}

// end waits until nothing is read ahead any more.
func (a *ahead) end() {
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	a.ended.Wait()
}
