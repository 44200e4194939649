package cow

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestOwnerPolicy(t *testing.T) {
	squash := uint32(33)
	maps := []IDMap{{Disk: 0, Shown: 1000, Size: 1}, {Disk: 1, Shown: 110000, Size: 65536}}
	for name, c := range map[string]struct {
		policy               OwnerPolicy
		disk, shown          uint32 // a user ID on disk, and what it is shown as
		from, created        uint32 // somebody's user ID, and what a file of theirs has on disk
		chown, chowned       uint32 // an ID that chown names, and what is stored
		refused              bool   // chown to 7
		copied, copiedToDisk uint32
	}{
		"none":   {OwnerPolicy{}, 5, 5, 6, 6, 8, 8, false, 9, 9},
		"map":    {OwnerPolicy{UIDMap: maps, Other: Owner{65534, 65534}}, 2, 110001, 1000, 0, 110002, 3, true, 70000, 70000},
		"no map": {OwnerPolicy{UIDMap: maps, Other: Owner{65534, 65534}}, 70000, 65534, 7, 65534, 1000, 0, true, 0, 0},
		"squash": {OwnerPolicy{UIDMap: maps, SquashUID: &squash}, 2, 33, 110003, 4, 1000, 0, true, 5, 5},
		"ranges": {OwnerPolicy{UIDs: []IDRange{{0, 10}}}, 11, 0, 3, 3, 4, 4, false, 12, 0},
	} {
		a := Attr{UID: c.disk, GID: 4}
		c.policy.apply(&a)
		if a.UID != c.shown || a.GID != 4 {
			t.Errorf("%s: %d is shown as %d:%d, want %d:4", name, c.disk, a.UID, a.GID, c.shown)
		}
		if got := c.policy.created(Owner{c.from, 4}); got != (Owner{c.created, 4}) {
			t.Errorf("%s: a file of %d has the owner %v, want %d", name, c.from, got, c.created)
		}
		uid, gid, err := c.policy.chowned(&SetAttr{Valid: SetUID, UID: c.chown})
		if uid != c.chowned || gid != noID || err != nil {
			t.Errorf("%s: chown to %d stores %d:%d, %v, want %d", name, c.chown, uid, gid, err, c.chowned)
		}
		if _, _, err := c.policy.chowned(&SetAttr{Valid: SetUID, UID: 7}); (err == unix.EINVAL) != c.refused {
			t.Errorf("%s: chown to 7: %v", name, err)
		}
		if got := c.policy.copied(&Attr{UID: c.copied, GID: 4}); got != (Owner{c.copiedToDisk, 4}) {
			t.Errorf("%s: a copy of a file of %d belongs to %v, want %d", name, c.copied, got, c.copiedToDisk)
		}
	}
}

func TestParseOverride(t *testing.T) {
	for v, want := range map[string]struct {
		o  override
		ok bool
	}{
		"1:2:644":             {override{Owner{1, 2}, 0o644, 0, 0}, true},
		"0:0:104755":          {override{Owner{0, 0}, 0o4755, 0, 0}, true},
		"1:2:755:dir":         {override{Owner{1, 2}, 0o755, 0, 0}, true},
		"1:2:644:block8:1":    {override{Owner{1, 2}, 0o644, 0, 0}, true},
		"1:2:644:block-8-257": {override{Owner{1, 2}, 0o644, unix.S_IFBLK, uint32(unix.Mkdev(8, 257))}, true},
		"1:2:644:char-1-3":    {override{Owner{1, 2}, 0o644, unix.S_IFCHR, 1<<8 | 3}, true},
		"1:2:777:symlink":     {override{Owner{1, 2}, 0o777, unix.S_IFLNK, 0}, true},
		"1:2:644:pipe":        {override{Owner{1, 2}, 0o644, unix.S_IFIFO, 0}, true},
		"1:2:644:socket":      {override{Owner{1, 2}, 0o644, unix.S_IFSOCK, 0}, true},
		"":                    {},
		"1:2":                 {},
		"1:2:9":               {},
		"1:2:644:char-0-0":    {}, // a whiteout
		"1:2:644:char-1":      {},
		"-1:2:644":            {},
		"1:4294967296:644":    {},
		"root:root:rw-r--r--": {},
	} {
		if o, ok := parseOverride(v); ok != want.ok || ok && o != want.o {
			t.Errorf("%q: got %+v %v", v, o, ok)
		}
	}
}
