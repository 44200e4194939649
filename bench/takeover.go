package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// TakeoverOptions says what [Takeover] measures.
type TakeoverOptions struct {
	Program  string // the unionfs to measure
	Dir      string // where branches and mounts are made
	Entries  []int  // of the trees
	Each     int    // of Entries, those of one directory with the directory itself; 0 for a thousand
	Kills    int    // of servers, for each tree
	Progress *Progress

	kept *stock // may be nil
}

// Takeover kills the server of a mount whose kernel knows every entry of a tree, again and again, while somebody goes on asking for
// what only a server can answer. A value is the longest that he waited for one answer around one kill.
func Takeover(ctx context.Context, o TakeoverOptions) (*Report, error) {
	if o.Each == 0 {
		o.Each = filesInDirectory
	}
	return measureInto(ctx, o.Dir, func(r *Report) error {
		p := heldPeer{o.Program}
		r.Peers = append(r.Peers, describePeer(ctx, p))
		o.Progress.start(len(o.Entries) * o.Kills)
		for _, entries := range o.Entries {
			if err := measureTakeover(ctx, o, p, entries, r); err != nil {
				return fmt.Errorf("with %d entries: %w", entries, err)
			}
		}
		return nil
	})
}

func measureTakeover(ctx context.Context, o TakeoverOptions, p peer, entries int, r *Report) (err error) {
	o.Progress.part(fmt.Sprintf("takeover: making %d entries", entries), "")
	scratch, err := os.MkdirTemp(o.Dir, "unionfs-bench-")
	if err != nil {
		return fmt.Errorf("making a directory for the branches: %w", err)
	}
	defer func() { err = errors.Join(err, removeScratch(scratch)) }()
	s, tree, err := o.kept.emptyFiles(ctx, scratch, entries, o.Each)
	if err != nil {
		return err
	}
	m, err := mountFresh(ctx, scratch, s, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	rootFD, err := openRoot(m.root)
	if err != nil {
		return err
	}
	defer unix.Close(rootFD)
	stop, end := neverStopped(ctx)
	defer end()
	if _, err := walk(&session{rootFD: rootFD, tree: tree, stop: stop}); err != nil {
		return err
	}
	c := &client{root: m.root, entries: entries, each: o.Each, random: rand.New(rand.NewPCG(1, 1))}
	ended := make(chan error, 1)
	go func() { ended <- c.ask(stop) }()
	r.inRounds()
	defer r.preparing()
	for kill := range o.Kills {
		o.Progress.part(fmt.Sprintf("takeover, %d entries, kill %d of %d", entries, kill+1, o.Kills), p.name())
		seconds, failed := c.around(ctx, m.root, ended)
		if failed != nil {
			return failed
		}
		m := r.at(Key{Bench: "takeover", Work: "kill", Depth: memoryBranches, Param: int64(entries)}, p.name(), "s")
		m.Ops, m.Values = 1, append(m.Values, seconds)
		o.Progress.step(1)
	}
	stop.Store(true)
	if err := <-ended; !errors.Is(err, errStopped) {
		return err
	}
	return nil
}

// client asks a mount all the time.
type client struct {
	root    string
	entries int
	each    int // entries of a directory
	random  *rand.Rand
	asked   atomic.Int64 // how often
	longest atomic.Int64 // ns that an answer took since it was set to 0
}

// ask asks for a name that nobody asked for before and for an attribute of a file, both of which the kernel knows by numbers only,
// until stopped.
func (c *client) ask(stop *atomic.Bool) error {
	for i := 0; !stop.Load(); i++ {
		start := time.Now()
		dir := c.random.IntN(max(c.entries/c.each, 1)) // one of those that are full
		file := dir*c.each + 1 + c.random.IntN(min(c.each, c.entries-dir*c.each)-1)
		in := path.Join(c.root, "dir-"+strconv.Itoa(dir))
		var st unix.Stat_t
		if err := unix.Lstat(path.Join(in, "missing-"+strconv.Itoa(i)), &st); err != unix.ENOENT {
			return fmt.Errorf("a name that is not there: %w", err)
		}
		if _, err := unix.Lgetxattr(path.Join(in, "file-"+strconv.Itoa(file)), "user.none", nil); err != unix.ENODATA {
			return fmt.Errorf("an attribute that is not there: %w", err)
		}
		took := time.Since(start).Nanoseconds()
		c.asked.Add(1)
		if took > c.longest.Load() {
			c.longest.Store(took)
		}
	}
	return errStopped
}

// takeoverLimit is how long another server may take until it answers.
const takeoverLimit = 60 * time.Second

// around kills the server of the mount and returns how long the client waited at most until another one had answered a hundred times.
func (c *client) around(ctx context.Context, target string, ended <-chan error) (seconds float64, err error) {
	deadline := time.Now().Add(takeoverLimit)
	// await waits until the client was answered so many times more.
	await := func(answers int64) error {
		for until := c.asked.Load() + answers; c.asked.Load() < until; time.Sleep(time.Millisecond) {
			select {
			case err := <-ended:
				return err
			case <-ctx.Done():
				return ctx.Err()
			default:
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("no other server answers within %v", takeoverLimit)
			}
		}
		return nil
	}
	if err := await(100); err != nil { // so that the last kill is over
		return 0, err
	}
	server, err := serverOf(target)
	if err != nil {
		return 0, err
	}
	c.longest.Store(0)
	if err := unix.Kill(server, unix.SIGKILL); err != nil {
		return 0, fmt.Errorf("killing the server: %w", err)
	}
	for next := server; next == server || next == 0; time.Sleep(time.Millisecond) {
		if next, err = serverOf(target); err != nil && !errors.Is(err, errNoProcess) {
			return 0, err
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("no other server was started within %v", takeoverLimit)
		}
	}
	if err := await(100); err != nil {
		return 0, err
	}
	return time.Duration(c.longest.Load()).Seconds(), nil
}
