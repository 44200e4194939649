package cow

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// partialMagic begins a record. After it, in little endian: the size of the lower file (8 bytes), how many bytes of it count
// (8), its mtime in seconds and nanoseconds (8 each), the length of its path (4), the path, and a bit for each block.
const partialMagic = "unionfs partial 1\n"

// makeRecord writes and maps the record of a copy of which no block has been made.
func (p *partial) makeRecord(path string, low *Attr) error {
	b := p.u.upper
	head := []byte(partialMagic)
	head = binary.LittleEndian.AppendUint64(head, low.Size)
	head = binary.LittleEndian.AppendUint64(head, uint64(p.size))
	head = binary.LittleEndian.AppendUint64(head, uint64(low.Mtime.Sec))
	head = binary.LittleEndian.AppendUint64(head, uint64(low.Mtime.Nsec))
	head = binary.LittleEndian.AppendUint32(head, uint32(len(path)))
	head = append(head, path...)
	length := len(head) + (p.blocks()+7)/8
	fd, err := unix.Openat(b.partial, partialName(p.ino, "map"), unix.O_CREAT|unix.O_TRUNC|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := pwriteAll(fd, append(head, make([]byte, length-len(head))...), 0); err != nil {
		return err
	}
	if !p.u.volatile {
		if err := unix.Fsync(fd); err != nil {
			return err
		}
	}
	return p.mapRecord(fd, length, len(head))
}

func (p *partial) mapRecord(fd, length, head int) (err error) {
	if p.record, err = unix.Mmap(fd, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return err
	}
	p.bits = p.record[head:]
	return nil
}

func syncDir(dir int) error {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fsync(fd)
}

// recoverPartials completes what a killed union left.
func (u *Union) recoverPartials() error {
	return u.leftPartials(func(number string) (bool, error) {
		if err := u.recoverPartial(number); err != nil {
			return false, fmt.Errorf("completing the copy-up that an earlier mount of %s began: %w", u.upper.path, err)
		}
		return false, nil
	})
}

// leftPartials calls take with the number of every copy under way that a killed union left, and then removes what is in
// work/partial of those that are not to be kept.
func (u *Union) leftPartials(take func(number string) (keep bool, err error)) error {
	b := u.upper
	var names []string
	if err := listAt(b.partial, "", func(e dirent) bool { names = append(names, e.name); return true }); err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, name := range names {
		number, isData := strings.CutSuffix(name, ".data")
		if !isData {
			continue
		}
		keep, err := take(number)
		if err != nil {
			return err
		}
		kept[number] = keep
	}
	for _, name := range names {
		if number, _, _ := strings.Cut(name, "."); kept[number] {
			continue
		}
		if err := unix.Unlinkat(b.partial, name, 0); err != nil && err != unix.ENOENT {
			return err
		}
	}
	return nil
}

func (u *Union) recoverPartial(number string) error {
	p, err := u.reopenPartial(number)
	if p == nil || err != nil {
		return err
	}
	defer func() {
		unix.Munmap(p.record)
		p.release()
	}()
	err = p.keepingTimes(func() error {
		for block := range p.blocks() {
			if err := p.fetch(block); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, unix.Fdatasync(p.fd)); err != nil {
		return err
	}
	return unmarkMetacopy(u.upper.partial, number+".data") // if it was to be completed by block
}

// resumePartials goes on with the copies that a killed union had under way, in the background.
func (u *Union) resumePartials() error {
	return u.leftPartials(func(number string) (bool, error) {
		p, err := u.reopenPartial(number)
		if err != nil {
			return false, fmt.Errorf("going on with a copy-up in %s: %w", u.upper.path, err)
		}
		if p == nil {
			return false, nil
		}
		if err := unmarkMetacopy(u.upper.partial, number+".data"); err != nil {
			return false, err
		}
		u.addPartial(p)
		u.completeLater(p)
		return true, nil
	})
}

// reopenPartial takes up a copy that a killed union had under way; nil if it was complete, or its file has no name.
func (u *Union) reopenPartial(number string) (_ *partial, err error) {
	b := u.upper
	fd, err := unix.Openat(b.partial, number+".data", unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	p := &partial{u: u, fd: fd, refs: 1}
	taken := false
	defer func() {
		if !taken {
			unix.Close(fd)
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	p.ino = st.Ino
	rec, err := unix.Openat(b.partial, number+".map", unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil, nil // the copy was complete
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(rec)
	if st.Nlink == 1 {
		return nil, nil // it never got a name in the upper branch, or has none any more
	}
	var size int64
	if size, err = unix.Seek(rec, 0, unix.SEEK_END); err != nil || size > 1<<30 {
		return nil, errors.Join(err, unix.EFBIG)
	}
	raw := make([]byte, size)
	if _, err := unix.Pread(rec, raw, 0); err != nil {
		return nil, err
	}
	path, low, head, err := parseRecord(raw, &p.size)
	if err != nil {
		return nil, err
	}
	slash := strings.LastIndexByte(path, '/')
	at, err := u.follow(nil, path[:slash+1], 0)
	if err != nil {
		return nil, err
	}
	if err := u.loadLower(at, nil); err != nil {
		return nil, err
	}
	l, ok, err := at.lookupLower(path[slash+1:])
	if err != nil {
		return nil, err
	}
	var now Attr
	if ok {
		if err := l.dir.Stat(l.entry, &now); err != nil {
			return nil, err
		}
	}
	if !ok || now.Size != low.Size || now.Mtime != low.Mtime {
		return nil, fmt.Errorf("%s is not what it was in the lower branches; mount the upper branch over the same lower branches as before", path)
	}
	if p.low, err = u.lowerData(&Node{low: l.source, lowIn: at}); err != nil {
		return nil, err
	}
	if err := p.mapRecord(rec, len(raw), head); err != nil {
		p.low.Release()
		return nil, err
	}
	// It was made with all its size. Less means a truncation, of which the record may not tell yet.
	p.size = min(p.size, st.Size)
	taken = true
	return p, nil
}

// parseRecord reads the beginning of a record; head is its length.
func parseRecord(raw []byte, counts *int64) (path string, low Attr, head int, err error) {
	const fixed = len(partialMagic) + 4*8 + 4
	bad := errors.New("its record is damaged")
	if len(raw) < fixed || string(raw[:len(partialMagic)]) != partialMagic {
		return "", low, 0, bad
	}
	number := func(i int) uint64 { return binary.LittleEndian.Uint64(raw[len(partialMagic)+8*i:]) }
	low.Size = number(0)
	low.Mtime = unix.Timespec{Sec: int64(number(2)), Nsec: int64(number(3))}
	length := uint64(binary.LittleEndian.Uint32(raw[fixed-4:]))
	if number(1) > low.Size || low.Size > math.MaxInt64 || length > uint64(len(raw)-fixed) {
		return "", low, 0, bad
	}
	*counts = int64(number(1))
	head = fixed + int(length)
	path = string(raw[fixed:head])
	blocks := (number(1) + partialBlock - 1) / partialBlock
	if !strings.HasPrefix(path, "/") || uint64(len(raw)-head) != (blocks+7)/8 {
		return "", low, 0, bad
	}
	return path, low, head, nil
}
