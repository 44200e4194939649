package bench

import (
	"bytes"
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// listingBuffer is what the C library gives getdents64.
const listingBuffer = 32 << 10

func openRoot(root string) (int, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: root, Err: err}
	}
	return fd, nil
}

// eachEntry lists an open directory and calls visit for every entry but "." and "..". The name is only valid during the
// call.
func eachEntry(fd int, buffer []byte, visit func(name []byte, kind byte) error) error {
	for {
		n, err := unix.Getdents(fd, buffer)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		for rest := buffer[:n]; len(rest) > 0; {
			// struct linux_dirent64, getdents64(2).
			length := binary.NativeEndian.Uint16(rest[unsafe.Offsetof(unix.Dirent{}.Reclen):])
			kind := rest[unsafe.Offsetof(unix.Dirent{}.Type)]
			name := rest[unsafe.Offsetof(unix.Dirent{}.Name):length]
			name = name[:bytes.IndexByte(name, 0)]
			rest = rest[length:]
			if string(name) == "." || string(name) == ".." {
				continue
			}
			if err := visit(name, kind); err != nil {
				return err
			}
		}
	}
}

func listNames(rootFD int, dir string) ([]string, error) {
	fd, err := unix.Openat(rootFD, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var names []string
	err = eachEntry(fd, make([]byte, listingBuffer), func(name []byte, _ byte) error {
		names = append(names, string(name))
		return nil
	})
	return names, err
}
