// Package executable finds the programs that belong to the running one.
package executable

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Self is the running program.
const Self = "/proc/self/exe"

// Companion opens the program of that name which lies beside the running one, whose path is running. It is nil unless that is as
// trustworthy as the running one (who may put a file into the directory, or change this one, can replace that too), can be executed,
// and was built together with it: the two exchange what no other version need understand. open opens a file of a directory, at least
// as O_PATH.
func Companion(running, name string, open func(dir int, name string) (fd int, err error)) *os.File {
	dir, err := unix.Open(filepath.Dir(running), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(dir)
	fd, err := open(dir, name)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), name)
	var around, found unix.Stat_t
	const writable = 0o022 // by others than the owner
	ok := unix.Fstat(dir, &around) == nil && around.Mode&writable == 0 &&
		unix.Fstat(fd, &found) == nil && found.Mode&unix.S_IFMT == unix.S_IFREG && found.Mode&writable == 0 &&
		unix.Faccessat(fd, "", unix.X_OK, unix.AT_EMPTY_PATH|unix.AT_EACCESS) == nil &&
		sameBuild(Self, fmt.Sprintf("/proc/self/fd/%d", fd))
	if !ok {
		f.Close()
		return nil
	}
	return f
}

// sameBuild reports whether two programs have the same build ID, by which the Makefile says that they belong together.
func sameBuild(a, b string) bool {
	id := buildID(a)
	return id != "" && id == buildID(b)
}

// buildID returns what Go's linker put into the note .note.go.buildid of a program, which lies in its first page
// (cmd/link/internal/ld/elf.go: sizes of name and description, a type, "Go"). It is empty if there is none.
func buildID(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	page := make([]byte, 4096)
	n, _ := io.ReadFull(f, page)
	const header = 16
	at := bytes.Index(page[:n], []byte("\x04\x00\x00\x00Go\x00\x00")) - 8
	if at < 0 || at+header > n {
		return ""
	}
	size := int(binary.NativeEndian.Uint32(page[at+4:]))
	if size > n-at-header {
		return ""
	}
	return string(page[at+header : at+header+size])
}
