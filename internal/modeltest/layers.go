package modeltest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Layers says what the layers that Fill makes may have in them.
type Layers struct {
	Rand *rand.Rand

	// Devices says that all whiteouts are character devices: the kernel's overlayfs reads no .wh. files.
	Devices bool

	// NoHardLinks leaves out files with several names, which come apart in an overlayfs without index when one of
	// them is copied up.
	NoHardLinks bool
}

// Fill puts random files into the directory of a layer, and does to the merged directory what the layer says; marks says
// whether there may be whiteouts and opaque directories, which the lowest layer has none of.
func (l *Layers) Fill(layer, merged string, depth int, marks bool) error {
	for _, name := range Names() {
		if err := l.name(layer, merged, name, depth, marks); err != nil {
			return err
		}
	}
	return nil
}

func (l *Layers) name(layer, merged, name string, depth int, marks bool) error {
	in, m := filepath.Join(layer, name), filepath.Join(merged, name)
	below, err := os.Lstat(m)
	exists := err == nil
	switch k := l.Rand.IntN(10); {
	case k < 3 && depth > 0:
		if err := os.Mkdir(in, 0o755); err != nil {
			return err
		}
		keep := exists && below.IsDir()
		if keep && marks && l.Rand.IntN(4) == 0 {
			if err := unix.Setxattr(in, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
				return err
			}
			keep = false
		}
		if !keep {
			if err := errors.Join(os.RemoveAll(m), os.Mkdir(m, 0o755)); err != nil {
				return err
			}
		}
		return l.Fill(in, m, depth-1, marks)
	case k < 6:
		data := Data(l.Rand)
		err := errors.Join(os.RemoveAll(m), os.WriteFile(in, data, 0o644), os.WriteFile(m, data, 0o644))
		if err == nil && !l.NoHardLinks && l.Rand.IntN(3) == 0 {
			err = l.link(in, m)
		}
		return err
	case k == 6:
		err := errors.Join(os.RemoveAll(m), os.Symlink("to-"+name, in), os.Symlink("to-"+name, m))
		if err == nil && !l.NoHardLinks && l.Rand.IntN(3) == 0 {
			err = l.link(in, m)
		}
		return err
	case k == 7 && marks && exists:
		if err := os.RemoveAll(m); err != nil {
			return err
		}
		if l.Devices || l.Rand.IntN(2) == 0 {
			return unix.Mknod(in, unix.S_IFCHR, 0)
		}
		return os.WriteFile(filepath.Join(layer, ".wh."+name), nil, 0o600)
	}
	return nil
}

// link gives a file that is new in both trees a second name.
func (l *Layers) link(in, m string) error {
	if err := os.RemoveAll(m + "h"); err != nil {
		return err
	}
	return errors.Join(os.Link(in, in+"h"), os.Link(m, m+"h"))
}

// Data is what a random file holds: less than 20,000 times the same letter.
func Data(rng *rand.Rand) []byte {
	return bytes.Repeat([]byte{byte('A' + rng.IntN(26))}, rng.IntN(20000))
}
