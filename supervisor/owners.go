package supervisor

import (
	"encoding/json"
	"errors"

	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
)

// Where there is one ID, the supervisor is told by the container's init which owners and devices the union is to keep. It does
// that itself while it serves the root, and else has the server do it.

// ownerQuestion is what the server is asked to do: to give a file another owner, or to make a device.
type ownerQuestion struct {
	File     uint64 // inode number of the file, or of the directory that the device is made in
	UID, GID uint32 // ^0 leaves it
	Device   string `json:",omitempty"` // the name of a device; the rest is about that
	Mode     uint32 `json:",omitempty"`
	Number   uint32 `json:",omitempty"`
}

// setOwner keeps the owner of a file that the host can't give it.
func (r *containerRoot) setOwner(file uint64, uid, gid uint32) error {
	return r.keepOwner(&ownerQuestion{File: file, UID: uid, GID: gid})
}

// makeDevice keeps a device that the host doesn't let us make.
func (r *containerRoot) makeDevice(dir uint64, name string, mode, rdev uint32) error {
	return r.keepOwner(&ownerQuestion{File: dir, Device: name, Mode: mode, Number: rdev})
}

func (r *containerRoot) keepOwner(q *ownerQuestion) error {
	r.mu.RLock()
	if r.union != nil {
		defer r.mu.RUnlock()
		return q.carryOut(r.union, r.server, false)
	}
	questions := r.questions
	r.mu.RUnlock()
	data, err := json.Marshal(q)
	if err != nil {
		return err
	}
	answer, err := questions.Ask(data)
	if err != nil {
		return unix.EIO // there is nothing left to own
	}
	var errno unix.Errno
	if err := json.Unmarshal(answer, &errno); err != nil || errno != 0 {
		return errors.Join(err, errno)
	}
	return nil
}

// answerOwnerQuestion is the server's side: the answer is an error number, or 0.
func answerOwnerQuestion(union *cow.Union, server *fs.Server, question []byte, again bool) []byte {
	var q ownerQuestion
	err := json.Unmarshal(question, &q)
	if err == nil {
		err = q.carryOut(union, server, again)
	}
	var errno unix.Errno
	if err != nil && !errors.As(err, &errno) {
		errno = unix.EIO
	}
	answer, _ := json.Marshal(errno) // a number always can be
	return answer
}

// carryOut does what is asked for. again says that it may have been done already.
func (q *ownerQuestion) carryOut(union *cow.Union, server *fs.Server, again bool) error {
	n, err := union.Locate(q.File)
	if err != nil {
		return err
	}
	defer union.Forget(n, 1)
	if q.Device != "" {
		return q.makeDevice(union, server, n, again)
	}
	s := cow.SetAttr{UID: q.UID, GID: q.GID}
	if q.UID != ^uint32(0) {
		s.Valid |= cow.SetUID
	}
	if q.GID != ^uint32(0) {
		s.Valid |= cow.SetGID
	}
	var a cow.Attr
	if err := union.Setattr(n, &s, &a); err != nil {
		return err
	}
	server.AttributesChanged(q.File)
	if n.Kind() != unix.S_IFREG && n.Kind() != unix.S_IFDIR {
		// It may be another file on disk now, and its directory have other times.
		for _, dir := range union.InDirectories(n) {
			server.AttributesChanged(dir)
		}
	}
	return nil
}

func (q *ownerQuestion) makeDevice(union *cow.Union, server *fs.Server, dir *cow.Node, again bool) error {
	var a cow.Attr
	made, err := union.Mknod(dir, q.Device, q.Mode, q.Number, cow.Owner{}, &a)
	if err == unix.EEXIST && again {
		if made, err = union.Lookup(dir, q.Device, &a); err == nil && (a.Mode != q.Mode || a.Rdev != q.Number) {
			union.Forget(made, 1)
			err = unix.EEXIST
		}
	}
	if err != nil {
		return err
	}
	union.Forget(made, 1)
	server.NameChanged(q.File, q.Device)
	return nil
}
