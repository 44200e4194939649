package cow

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// OwnerPolicy says which user and group IDs the union shows and stores. The zero value: those that the host has.
//
// An ID on disk goes through three steps to become the one that is shown: the map, where there is one; the squash; and the
// ranges. What the union's users name in chown, or are when they make a file, goes through the map the other way. Copy-up
// keeps the ID that is on disk, but for what the ranges leave out.
type OwnerPolicy struct {
	// UIDMap and GIDMap, if not empty, translate IDs, with the first map that has them. An ID on disk that is in no map
	// is shown as Other, and an ID of a user that is in none is stored as that.
	UIDMap, GIDMap []IDMap

	// SquashUID and SquashGID, if set, are shown as the owner of everything. What is stored stays as exact as the host
	// allows.
	SquashUID, SquashGID *uint32

	// Xattr keeps owners and modes of the upper branch in an xattr, for hosts that can't chown; see virtual.go. Lower
	// branches that have such xattrs need DirOptions.Override.
	Xattr bool

	// Record keeps, in the upper branch, owners outside UIDs and GIDs and devices that the host refuses in that xattr,
	// so that they come out of the branch exactly as they went in; see recorded.go.
	Record bool

	// UIDs and GIDs are the only IDs that may be shown, on hosts where the kernel refuses writes to files of others; with
	// no ranges, all.
	UIDs, GIDs []IDRange

	// Other is shown in place of an ID outside the ranges or the maps.
	Other Owner
}

// IDRange is Size IDs from First on.
type IDRange struct{ First, Size uint32 }

func (r IDRange) has(id uint32) bool { return id >= r.First && id-r.First < r.Size }

// IDMap shows the Size IDs from Disk on as those from Shown on.
type IDMap struct{ Disk, Shown, Size uint32 }

// apply makes the owner on disk the one that is shown.
func (p *OwnerPolicy) apply(a *Attr) {
	a.UID = showID(a.UID, p.UIDMap, p.SquashUID, p.UIDs, p.Other.UID)
	a.GID = showID(a.GID, p.GIDMap, p.SquashGID, p.GIDs, p.Other.GID)
}

func showID(id uint32, maps []IDMap, squash *uint32, ranges []IDRange, other uint32) uint32 {
	if len(maps) > 0 {
		mapped, ok := toShown(maps, id)
		if !ok {
			mapped = other
		}
		id = mapped
	}
	if squash != nil {
		id = *squash
	}
	if ranges != nil && !inRanges(ranges, id) {
		id = other
	}
	return id
}

// copied is the owner on disk of a copy of a lower file.
func (p *OwnerPolicy) copied(a *Attr) Owner {
	o := Owner{a.UID, a.GID}
	if p.Record {
		return o
	}
	if len(p.UIDMap) == 0 && p.SquashUID == nil && p.UIDs != nil && !inRanges(p.UIDs, o.UID) {
		o.UID = p.Other.UID
	}
	if len(p.GIDMap) == 0 && p.SquashGID == nil && p.GIDs != nil && !inRanges(p.GIDs, o.GID) {
		o.GID = p.Other.GID
	}
	return o
}

// created is the owner on disk of a file that somebody makes. Who is in no map may make files all the same, as a server of
// the host's that prepares a container's root does.
func (p *OwnerPolicy) created(o Owner) Owner {
	if len(p.UIDMap) > 0 {
		if id, ok := toDisk(p.UIDMap, o.UID); ok {
			o.UID = id
		} else {
			o.UID = p.Other.UID
		}
	}
	if len(p.GIDMap) > 0 {
		if id, ok := toDisk(p.GIDMap, o.GID); ok {
			o.GID = id
		} else {
			o.GID = p.Other.GID
		}
	}
	return o
}

// chowned translates the IDs of a chown. EINVAL for one that is in no map, as from a mount with an ID map of the kernel's
// (chown_common in fs/open.c).
func (p *OwnerPolicy) chowned(s *SetAttr) (uid, gid uint32, err error) {
	uid, gid = noID, noID
	if s.Valid&SetUID != 0 {
		if uid = s.UID; len(p.UIDMap) > 0 {
			var ok bool
			if uid, ok = toDisk(p.UIDMap, uid); !ok {
				return 0, 0, unix.EINVAL
			}
		}
	}
	if s.Valid&SetGID != 0 {
		if gid = s.GID; len(p.GIDMap) > 0 {
			var ok bool
			if gid, ok = toDisk(p.GIDMap, gid); !ok {
				return 0, 0, unix.EINVAL
			}
		}
	}
	return uid, gid, nil
}

// noID is what chown(2) takes for "leave it".
const noID = ^uint32(0)

// lenient reports whether an owner that the host doesn't let us store is to be left out.
func (p *OwnerPolicy) lenient() bool {
	return p.Xattr || p.Record || p.UIDs != nil || p.SquashUID != nil || p.SquashGID != nil
}

func toShown(maps []IDMap, id uint32) (uint32, bool) {
	for _, m := range maps {
		if (IDRange{m.Disk, m.Size}).has(id) {
			return m.Shown + (id - m.Disk), true
		}
	}
	return 0, false
}

func toDisk(maps []IDMap, id uint32) (uint32, bool) {
	for _, m := range maps {
		if (IDRange{m.Shown, m.Size}).has(id) {
			return m.Disk + (id - m.Shown), true
		}
	}
	return 0, false
}

func inRanges(r []IDRange, id uint32) bool {
	for _, x := range r {
		if x.has(id) {
			return true
		}
	}
	return false
}

// POSIX ACLs have owners in them too: include/uapi/linux/posix_acl_xattr.h, a version of 4 bytes, then entries of tag (2),
// permissions (2) and ID (4), little endian.
const (
	aclAccessXattr  = "system.posix_acl_access"
	aclDefaultXattr = "system.posix_acl_default"

	aclUserTag  = 0x02
	aclGroupTag = 0x08
)

func isACL(xattr string) bool { return xattr == aclAccessXattr || xattr == aclDefaultXattr }

// shownXattr translates the value of an attribute from disk.
func (p *OwnerPolicy) shownXattr(name string, value []byte) []byte {
	value, _ = p.mapACL(name, value, func(maps []IDMap, other, id uint32) (uint32, error) {
		if shown, ok := toShown(maps, id); ok {
			return shown, nil
		}
		return other, nil
	})
	return value
}

// storedXattr translates the value of an attribute that is to be set. EINVAL if it names an ID that is in no map.
func (p *OwnerPolicy) storedXattr(name string, value []byte) ([]byte, error) {
	return p.mapACL(name, value, func(maps []IDMap, other, id uint32) (uint32, error) {
		disk, ok := toDisk(maps, id)
		switch {
		case ok:
			return disk, nil
		case id == other: // what an ACL on disk was shown with, as a new file inherits it
			return id, nil
		}
		return 0, unix.EINVAL
	})
}

func (p *OwnerPolicy) mapACL(name string, value []byte, translate func(maps []IDMap, other, id uint32) (uint32, error)) ([]byte, error) {
	if len(p.UIDMap)+len(p.GIDMap) == 0 || !isACL(name) || len(value) < 4 {
		return value, nil
	}
	value = append([]byte(nil), value...)
	for e := value[4:]; len(e) >= 8; e = e[8:] {
		var maps []IDMap
		var other uint32
		switch binary.LittleEndian.Uint16(e) {
		case aclUserTag:
			maps, other = p.UIDMap, p.Other.UID
		case aclGroupTag:
			maps, other = p.GIDMap, p.Other.GID
		}
		if len(maps) == 0 {
			continue
		}
		id, err := translate(maps, other, binary.LittleEndian.Uint32(e[4:]))
		if err != nil {
			return nil, err
		}
		binary.LittleEndian.PutUint32(e[4:], id)
	}
	return value, nil
}
