// Package cow is the union itself: any number of read-only lower branches and at most one writable upper branch, merged
// into one tree, with copy-up, whiteouts, renames and the difference between the top and the rest. It is a library over
// directory handles and knows nothing of FUSE, images or containers.
//
// Locks, in the order in which they may be taken:
//
//  1. Union.copying[i], over a copy-up of one file; never by anything that a reader waits for.
//  2. Union.tree. Held shared by every operation that finds a file by its place in the tree, and exclusively by Rename
//     alone; so names and parents of directories stand still during an operation.
//  3. Node.mu of a directory, then of what is in it: from the root downwards.
//  4. Node.fdMu, from a file upwards to the root.
//  5. shard.mu, then spares.mu; ahead.mu and Descriptors.mu, which are leaves.
//
// No lock but the first is held while file data is copied.
package cow

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Options says what to merge.
type Options struct {
	// Lower are the read-only branches, the top one first. The union closes them.
	Lower []Branch

	// Upper is the writable directory; with none the union is read only and every change fails with EROFS.
	Upper string

	// Work is an otherwise unused directory on the file system of Upper. What is prepared there is moved into the
	// upper branch by one rename. What an interrupted union left there is removed by the next.
	Work string

	// Owners says which owners the union shows and stores; the zero value, those on disk.
	Owners OwnerPolicy

	// Volatile leaves out every fsync: for an upper branch that is thrown away after a crash.
	Volatile bool

	// NoRedirect makes the rename of a directory that lower branches have fail with EXDEV, for upper branches that must
	// be read by programs that don't know overlay.redirect.
	NoRedirect bool

	// Resume says that the union goes on where another process with the same options was killed: what that one kept
	// in the work directory for files that somebody holds is not removed, and [Union.Locate] finds its nodes.
	Resume bool

	// Metacopy says what becomes of the data of files of which only the metadata changes.
	Metacopy Metacopy

	// Descriptors is the cache of open files; nil makes one of the default size.
	Descriptors *Descriptors

	// For tests: Union.many, 0 for the default, and Union.heldBack.
	many     int
	heldBack func(*Union, *Node)
}

// RootID is the ID of the root directory; FUSE fixes it (FUSE_ROOT_ID).
const RootID = 1

// Union is a merged tree. All its methods may be called by many goroutines at once. Errors of the file system are
// [unix.Errno] values or wrap one.
type Union struct {
	lowers []Branch
	owners OwnerPolicy
	fds    *Descriptors

	volatile, noRedirect bool
	metacopy             Metacopy

	ownFDs bool
	upper  *upperBranch // nil if read only
	root   *Node

	many     int                 // a directory of more names is read in the background; see many.go
	readings sync.WaitGroup      // of such directories
	stopping atomic.Bool         // nothing is read any more
	heldBack func(*Union, *Node) // if not nil, called before such a directory is read
	partials partials
	ahead    ahead
	former   *former // nil unless it goes on from another
	trail    trail
	names    trailNames

	tree    sync.RWMutex
	copying [64]sync.Mutex // by node ID
	shards  [64]shard
	spare   atomic.Uint64 // for IDs of files whose own is taken
	spares  spares
}

// shard is a part of the table of live nodes.
type shard struct {
	mu    sync.RWMutex
	nodes map[uint64]*Node // guarded by mu, as is Node.refs
	thin  map[uint64]thin  // guarded by mu; what is here is not in nodes
}

// New merges branches. The error says which branch is at fault and why; the branches are then closed.
func New(o Options) (_ *Union, err error) {
	u := &Union{lowers: o.Lower, owners: o.Owners, fds: o.Descriptors, volatile: o.Volatile, noRedirect: o.NoRedirect, metacopy: o.Metacopy, many: cmp.Or(o.many, namesAtOnce), heldBack: o.heldBack}
	defer func() {
		if err != nil {
			u.Close()
		}
	}()
	if len(o.Lower) == 0 && o.Upper == "" {
		return nil, errors.New("a union needs at least one branch")
	}
	if len(o.Lower) > maxBranches {
		return nil, fmt.Errorf("%d branches are more than the %d that a union can have", len(o.Lower), maxBranches)
	}
	if u.fds == nil {
		u.fds, u.ownFDs = NewDescriptors(0), true
	}
	u.ahead.unused = map[uint64]bool{}
	for i := range u.shards {
		u.shards[i].nodes, u.shards[i].thin = map[uint64]*Node{}, map[uint64]thin{}
	}
	dir := &directory{}
	for i, b := range o.Lower {
		r, err := b.Root()
		if err != nil {
			return nil, fmt.Errorf("reading branch %s: %w", b.Describe(), err)
		}
		dir.sources = append(dir.sources, source{branch: i, dir: r, entry: r.Self()})
	}
	u.root = &Node{id: RootID, refs: math.MaxInt32, kind: unix.S_IFDIR, dir: dir}
	if o.Upper != "" {
		if u.upper, err = openUpper(o.Upper, o.Work, o.Resume); err != nil {
			return nil, err
		}
		u.root.inUpper = true
		if u.owners.Record {
			if err := u.upper.markRecorded(); err != nil {
				return nil, err
			}
		}
		if opaque, _, err := markedOpaque(u.upper.root, ""); err != nil {
			return nil, fmt.Errorf("reading upper branch %s: %w", o.Upper, err)
		} else if opaque {
			dir.sources = nil
		}
	}
	u.shard(RootID).nodes[RootID] = u.root
	switch {
	case o.Resume:
		err = u.startResume()
	case u.upper != nil:
		err = u.recoverPartials()
	}
	if err != nil {
		return nil, err
	}
	return u, nil
}

// Close completes the upper branch and lets go of everything. Nothing may use the union any more. Close does not sync.
func (u *Union) Close() error {
	var errs []error
	u.stopReading()
	u.stopResume()
	if u.upper != nil {
		errs = append(errs, u.finishPartials())
		err := u.finishHardLinks()
		if err == nil {
			err = u.finishMetacopies() // all of them have names in the upper branch now
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, u.release())...)
}

// Leave lets go of everything and leaves the upper branch as it is, for another process that goes on with it ([Options.Resume]).
// It takes the place of Close.
func (u *Union) Leave() error {
	u.stopReading()
	u.stopResume()
	u.leavePartials()
	return u.release()
}

// release closes what the union has open.
func (u *Union) release() error {
	var errs []error
	if u.upper != nil {
		errs = append(errs, u.upper.close())
	}
	for _, b := range u.lowers {
		errs = append(errs, b.Close())
	}
	if u.ownFDs {
		u.fds.Close()
	}
	return errors.Join(errs...)
}

// Alive returns when the union could begin with another operation: at once, unless something is wrong with this program.
func (u *Union) Alive() {
	u.tree.RLock()
	defer u.tree.RUnlock()
	u.root.mu.RLock()
	defer u.root.mu.RUnlock()
}

// ReadOnly reports whether the union has no upper branch.
func (u *Union) ReadOnly() bool { return u.upper == nil }

// Root returns the root directory, whose ID is RootID.
func (u *Union) Root() *Node { return u.root }

func (u *Union) shard(id uint64) *shard { return &u.shards[(id^id>>6)%uint64(len(u.shards))] }

// Node returns a live node by its ID, without taking a reference; nil if nobody holds it.
func (u *Union) Node(id uint64) *Node {
	s := u.shard(id)
	s.mu.RLock()
	n := s.nodes[id]
	s.mu.RUnlock()
	if n == nil {
		n = u.thicken(id)
	}
	return n
}

// Statfs describes the file system that new data goes to, or that the top branch is on.
func (u *Union) Statfs(st *unix.Statfs_t) error {
	if u.upper != nil {
		return unix.Fstatfs(u.upper.root, st)
	}
	return u.lowers[0].Statfs(st)
}
