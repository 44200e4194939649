package cow

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// thinFiles counts the files that are known by their ID only.
func (u *Union) thinFiles() int {
	count := 0
	for i := range u.shards {
		count += len(u.shards[i].thin)
	}
	return count
}

// twoBranches is a union of two directories with files of their own and one of both, and an empty upper one.
func twoBranches(t testing.TB) *Union {
	o := Options{Upper: t.TempDir(), Work: t.TempDir()}
	for i := range 2 {
		dir := t.TempDir()
		for j := range 20 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d-%d", i, j)), []byte("content"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "both"), fmt.Append(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
		b, err := OpenDirBranch(dir, DirOptions{})
		if err != nil {
			t.Fatal(err)
		}
		o.Lower = append(o.Lower, b)
	}
	u, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	return u
}

// TestThin follows a file that is at first known by its ID only through what makes it a node.
func TestThin(t *testing.T) {
	u := twoBranches(t)
	var a, again Attr
	id, err := u.LookupID(u.Root(), "both", &a)
	must(t, err)
	if u.thinFiles() != 1 || a.Ino != id || a.Size != 1 {
		t.Fatalf("%d thin files, ID %d, attributes %+v", u.thinFiles(), id, a)
	}
	_, err = u.GetattrID(id, &again)
	must(t, err)
	if again != a {
		t.Fatalf("attributes %+v by name and %+v by ID", a, again)
	}
	same, err := u.LookupID(u.Root(), "both", &a)
	must(t, err)
	if same != id || u.thinFiles() != 1 {
		t.Fatalf("looked up again it is %d and was %d; %d thin files", same, id, u.thinFiles())
	}
	u.ForgetID(id, 1)

	n := u.Node(id)
	if n == nil || n.ID() != id || u.thinFiles() != 0 || n.refs != 1 {
		t.Fatalf("node %v; %d thin files", n, u.thinFiles())
	}
	other, err := u.Lookup(u.Root(), "both", &a)
	must(t, err)
	if other != n {
		t.Fatal("two nodes for one file")
	}
	u.Forget(n, 1)

	// Whoever has it open goes on reading when its name is gone.
	must(t, u.Unlink(u.Root(), "both"))
	var buf [10]byte
	if got, err := u.Read(n, 0, buf[:]); err != nil || string(buf[:got]) != "0" {
		t.Fatalf("read %q, %v", buf[:got], err)
	}
	u.ForgetID(id, 1)

	// A thin file that is removed.
	id, err = u.LookupID(u.Root(), "f0-1", &a)
	must(t, err)
	must(t, u.Unlink(u.Root(), "f0-1"))
	if _, err := u.LookupID(u.Root(), "f0-1", &a); err != unix.ENOENT {
		t.Fatalf("after its removal: %v", err)
	}
	_, err = u.GetattrID(id, &a)
	must(t, err)
	u.ForgetID(id, 1)
	if u.Node(id) != nil || u.thinFiles() != 0 {
		t.Fatal("the file was forgotten and is still there")
	}
	if _, err := u.GetattrID(id, &a); err != unix.ESTALE {
		t.Fatalf("attributes of a forgotten file: %v", err)
	}
	u.ForgetID(id, 1) // as of a server before this one
}

// TestThinConcurrently has files looked up, made nodes and forgotten at the same time, and checks that nothing is left.
func TestThinConcurrently(t *testing.T) {
	u := twoBranches(t)
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			var a Attr
			for i := range 500 {
				id, err := u.LookupID(u.Root(), fmt.Sprintf("f%d-%d", i%2, i%7), &a)
				if err != nil {
					t.Error(err)
					return
				}
				if (i+w)%3 == 0 {
					if n := u.Node(id); n == nil || n.ID() != id {
						t.Errorf("node %v of a file that is held", n)
					}
				}
				if _, err := u.GetattrID(id, &a); err != nil {
					t.Error(err)
				}
				u.ForgetID(id, 1)
			}
		})
	}
	all.Wait()
	left := u.thinFiles()
	for i := range u.shards {
		left += len(u.shards[i].nodes)
	}
	if left != 1 { // the root
		t.Errorf("%d files are left", left)
	}
}

// TestAllocations checks that what the kernel asks most often makes no garbage.
func TestAllocations(t *testing.T) {
	u := twoBranches(t)
	var a Attr
	id, err := u.LookupID(u.Root(), "f0-0", &a)
	must(t, err)
	n, err := u.Lookup(u.Root(), "f0-1", &a)
	must(t, err)
	buf := make([]byte, 100)
	for name, f := range map[string]func(){
		"lookup": func() { must(t, lookupAndForget(u, "f0-0", &a)) },
		"getattr": func() {
			_, err := u.GetattrID(id, &a)
			must(t, err)
		},
		"getattr of node":   func() { must(t, u.Getattr(n, &a)) },
		"missing":           func() { u.LookupID(u.Root(), "missing", &a) },
		"read":              func() { u.Read(n, 0, buf) },
		"forget a stranger": func() { u.ForgetID(1<<61, 1) },
	} {
		if got := testing.AllocsPerRun(100, f); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
}

func lookupAndForget(u *Union, name string, a *Attr) error {
	id, err := u.LookupID(u.Root(), name, a)
	u.ForgetID(id, 1)
	return err
}

// manyNames is a branch with nothing but a root of many empty files.
type manyNames struct{ count int }

func (manyNames) Close() error                           { return nil }
func (manyNames) Statfs(*unix.Statfs_t) error            { return nil }
func (m manyNames) Lookup(string) (Entry, error)         { return Entry{}, unix.ENOENT }
func (manyNames) Opaque() (bool, error)                  { return false, nil }
func (manyNames) Redirect() (string, error)              { return "", nil }
func (manyNames) Self() Entry                            { return Entry{Type: unix.S_IFDIR} }
func (manyNames) Sub(Entry) (Dir, error)                 { return nil, unix.ENOTDIR }
func (manyNames) Open(Entry) (*Data, error)              { return nil, unix.EINVAL }
func (manyNames) Readlink(Entry) (string, error)         { return "", unix.EINVAL }
func (manyNames) Getxattr(Entry, string) ([]byte, error) { return nil, unix.ENODATA }
func (manyNames) Listxattr(Entry) ([]string, error)      { return nil, nil }
func (m manyNames) List(_ uint64, yield func(Entry) bool) error {
	for i := range m.count {
		if !yield(Entry{Name: fmt.Sprintf("a-file-%07d", i), Ino: uint64(i) + 10, Type: unix.S_IFREG}) {
			break
		}
	}
	return nil
}

func (manyNames) Stat(e Entry, a *Attr) error {
	*a = Attr{Ino: e.Ino, Mode: e.Type | 0o644, Nlink: 1}
	return nil
}

// manyBranch makes a Branch of it: what a branch and a directory are called differs in Describe only.
type manyBranch struct{ manyNames }

func (manyBranch) Describe() string { return "many names" }
func (manyBranch) Indexed() bool    { return false }
func (b manyBranch) Root() (Dir, error) {
	return manyDir(b), nil
}

type manyDir struct{ manyNames }

func (manyDir) Describe(Entry) string { return "many names" }

// TestMemory bounds what a file costs that the kernel knows, its name included, in a directory that has very many.
func TestMemory(t *testing.T) {
	const count, most = 200_000, 150
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	u, err := New(Options{Lower: []Branch{manyBranch{manyNames{count}}}})
	must(t, err)
	defer u.Close()
	ents, known, after := make([]DirEnt, 0, 256), 0, uint64(0)
	var a Attr
	for {
		ents, err = u.ReadDir(u.Root(), after, ents[:0])
		must(t, err)
		if len(ents) == 0 {
			break
		}
		for i := range ents {
			_, err := u.LookupEntry(u.Root(), &ents[i], &a)
			must(t, err)
			known++
		}
		after = ents[len(ents)-1].Cookie
	}
	each := (heap() - before) / count
	t.Logf("%d bytes a file", each)
	if known != count || each > most {
		t.Errorf("%d files, %d bytes each", known, each)
	}
	runtime.KeepAlive(u)
}
