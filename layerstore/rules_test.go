package layerstore

import (
	"archive/tar"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// brief lists a branch in few words, for tables: "d/ 755", "f=content", "l->target".
func brief(b cow.Branch) (string, error) {
	root, err := b.Root()
	if err != nil {
		return "", err
	}
	seen := map[string]string{}
	var walk func(d cow.Dir, p string) error
	walk = func(d cow.Dir, p string) error {
		var failed error
		err := d.List(0, func(e cow.Entry) bool {
			failed = func() error {
				var a cow.Attr
				if err := d.Stat(e, &a); err != nil {
					return err
				}
				name := p + e.Name
				switch e.Type {
				case unix.S_IFDIR:
					seen[name] = fmt.Sprintf("%s/ %o", name, a.Mode&0o7777)
					sub, err := d.Sub(e)
					if err != nil {
						return err
					}
					return walk(sub, name+"/")
				case unix.S_IFREG:
					data, err := d.Open(e)
					if err != nil {
						return err
					}
					defer data.Release()
					buf := make([]byte, data.Size)
					if _, err := unix.Pread(data.FD, buf, data.Off); err != nil {
						return err
					}
					seen[name] = name + "=" + string(buf)
					if a.Nlink > 1 {
						seen[name] += fmt.Sprintf(" x%d", a.Nlink)
					}
				case unix.S_IFLNK:
					target, err := d.Readlink(e)
					if err != nil {
						return err
					}
					seen[name] = name + "->" + target
				default:
					seen[name] = fmt.Sprintf("%s %s %#x", name, kindName(e.Type), a.Rdev)
				}
				return nil
			}()
			return failed == nil
		})
		if failed != nil {
			return failed
		}
		return err
	}
	var a cow.Attr
	if err := root.Stat(root.Self(), &a); err != nil {
		return "", err
	}
	if a.Mode&0o7777 != 0o755 {
		seen[""] = fmt.Sprintf("/ %o", a.Mode&0o7777)
	}
	if err := walk(root, ""); err != nil {
		return "", err
	}
	var list []string
	for _, k := range slices.Sorted(maps.Keys(seen)) {
		list = append(list, seen[k])
	}
	return strings.Join(list, ", "), nil
}

func wh(p string) entry { return reg(p, "") }

func TestApplierRules(t *testing.T) {
	type layer = []entry
	cases := []struct {
		name   string
		layers []layer
		want   string // of brief
		fails  string // part of the error instead
	}{
		{"whiteout hides a lower file", []layer{{reg("a", "1"), reg("b", "2")}, {wh(".wh.a")}}, "b=2", ""},
		{"whiteout hides a lower directory", []layer{{reg("d/a", "1")}, {wh(".wh.d")}}, "", ""},
		{"whiteout of nothing", []layer{{reg("a", "1")}, {wh(".wh.zz")}}, "a=1", ""},
		{"whiteout never hides a sibling of its layer", []layer{{reg("a", "1")}, {reg("a", "2"), wh(".wh.a")}}, "a=2", ""},
		{"… nor one that comes later", []layer{{reg("a", "1")}, {wh(".wh.a"), reg("a", "2")}}, "a=2", ""},
		{"whiteout and directory of one name", []layer{{reg("d/old", "1")}, {wh(".wh.d"), reg("d/new", "2")}}, "d/ 755, d/new=2", ""},
		{"whiteout then a layer that has it again", []layer{{reg("a", "1")}, {wh(".wh.a")}, {reg("a", "3")}}, "a=3", ""},
		{"whiteout in a directory that isn't there makes it", []layer{{reg("a", "1")}, {wh("x/y/.wh.z")}}, "a=1, x/ 755, x/y/ 755", ""},
		{"whiteout of any type", []layer{{reg("a", "1"), reg("b", "")}, {symlink(".wh.a", "x"), link(".wh.b", ".wh..wh.aufs")}}, "", ""},
		{"bare whiteout", []layer{{wh(".wh.")}}, "", "whiteout of no name"},
		{"whiteout of dot", []layer{{wh("d/.wh..")}}, "", "whiteout of no name"},
		{"whiteout of dot dot", []layer{{wh("d/.wh...")}}, "", "whiteout of no name"},
		{"entry beneath a whiteout", []layer{{reg(".wh.a/b", "")}}, "", "beneath a whiteout"},
		{"AUFS's own files", []layer{{reg("a", "1"), reg(".wh..wh.aufs", ""), folder(".wh..wh.plnk", 0o700), reg(".wh..wh.plnk/1.2", "x")}}, "a=1", ""},
		{"opaque at the start", []layer{{reg("d/a", "1"), reg("d/s/b", "2")}, {folder("d", 0o700), wh("d/.wh..wh..opq"), reg("d/n", "3")}}, "d/ 700, d/n=3", ""},
		{"opaque at the end", []layer{{reg("d/a", "1")}, {folder("d", 0o700), reg("d/n", "3"), wh("d/.wh..wh..opq")}}, "d/ 700, d/n=3", ""},
		{"opaque without the directory keeps its attributes", []layer{{folder("d", 0o711), reg("d/a", "1")}, {wh("d/.wh..wh..opq")}}, "d/ 711", ""},
		{"opaque root", []layer{{reg("a", "1"), reg("d/b", "2")}, {wh(".wh..wh..opq"), reg("c", "3")}}, "c=3", ""},
		{"opaque in the middle", []layer{{reg("d/a", "1")}, {wh("d/.wh..wh..opq"), reg("d/b", "2")}, {reg("d/c", "3")}}, "d/ 755, d/b=2, d/c=3", ""},
		{"directory over directory replaces attributes", []layer{{folder("d", 0o711), reg("d/a", "1")}, {folder("d", 0o1777)}}, "d/ 1777, d/a=1", ""},
		{"implied directory keeps attributes", []layer{{folder("d", 0o711), reg("d/a", "1")}, {reg("d/b", "2")}}, "d/ 711, d/a=1, d/b=2", ""},
		{"file over directory", []layer{{reg("d/a", "1")}, {reg("d", "2")}}, "d=2", ""},
		{"directory over file", []layer{{reg("d", "1")}, {folder("d", 0o700)}}, "d/ 700", ""},
		{"directory over file over directory", []layer{{reg("d/a", "1")}, {reg("d", "2")}, {reg("d/b", "3")}}, "d/ 755, d/b=3", ""},
		{"the same within one layer", []layer{{reg("d/a", "1")}, {reg("d", "2"), folder("d", 0o700), reg("d/b", "3")}}, "d/ 700, d/b=3", ""},
		{"the root's own entry", []layer{{entry{tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o1750}, ""}, reg("a", "1")}}, "/ 1750, a=1", ""},
		{"missing parents", []layer{{reg("x/y/z", "1")}}, "x/ 755, x/y/ 755, x/y/z=1", ""},
		{"last duplicate wins", []layer{{reg("a", "1"), reg("a", "2"), folder("d", 0o700), folder("d", 0o711)}}, "a=2, d/ 711", ""},
		{"duplicate of another kind", []layer{{reg("a/b", "1"), symlink("a", "x")}}, "a->x", ""},
		{"hard link", []layer{{reg("a", "1"), link("b", "a")}}, "a=1 x2, b=1 x2", ""},
		{"hard link, absolute", []layer{{reg("d/a", "1"), link("./b", "/d/a")}}, "b=1 x2, d/ 755, d/a=1 x2", ""},
		{"hard link to a later entry", []layer{{link("b", "a"), reg("a", "1")}}, "a=1 x2, b=1 x2", ""},
		{"chain of hard links to a later entry", []layer{{link("c", "b"), link("b", "a"), reg("a", "1")}}, "a=1 x3, b=1 x3, c=1 x3", ""},
		{"hard link into a lower layer", []layer{{reg("d/a", "1")}, {link("b", "d/a")}}, "b=1 x2, d/ 755, d/a=1 x2", ""},
		{"hard link to what the same layer deletes", []layer{{reg("a", "1")}, {wh(".wh.a"), link("b", "a")}}, "b=1", ""},
		{"hard link to a lower entry that comes again later", []layer{{reg("a", "1")}, {link("b", "a"), reg("a", "2")}}, "a=2, b=1", ""},
		{"hard link to an entry that comes again", []layer{{reg("a", "1"), link("b", "a"), reg("a", "2")}}, "a=2, b=1", ""},
		{"hard link over two layers", []layer{{reg("a", "1")}, {link("b", "a")}, {link("c", "b")}}, "a=1 x3, b=1 x3, c=1 x3", ""},
		{"one of two links replaced above", []layer{{reg("a", "1"), link("b", "a")}, {reg("a", "2")}}, "a=2, b=1", ""},
		{"hard link to itself", []layer{{reg("a", "1"), link("a", "a")}}, "a=1", ""},
		{"hard link to itself in a lower layer", []layer{{reg("a", "1")}, {link("a", "a")}}, "a=1", ""},
		{"hard link to a symbolic link", []layer{{symlink("a", "x"), link("b", "a")}}, "a->x, b->x", ""},
		{"hard link to nothing", []layer{{link("b", "a")}}, "", "neither in the layer nor in those below"},
		{"hard links in a circle", []layer{{link("b", "a"), link("a", "b")}}, "", "leads to itself"},
		{"hard link to a directory", []layer{{folder("d", 0o755), link("b", "d")}}, "", "hard link to the directory"},
		{"hard link to a lower directory", []layer{{folder("d", 0o755)}, {link("b", "d")}}, "", "is a directory"},
		{"hard link through a lower symbolic link", []layer{{reg("d/a", "1"), symlink("l", "d")}, {link("b", "l/a")}}, "", "neither in the layer"},
		{"absolute name", []layer{{reg("//abs/a", "1")}}, "abs/ 755, abs/a=1", ""},
		{"dots inside the image", []layer{{reg("x/../a", "1"), reg("./b/./c", "2")}}, "a=1, b/ 755, b/c=2", ""},
		{"name that leads out", []layer{{reg("../a", "1")}}, "", "leads out of the image"},
		{"absolute name that leads out", []layer{{reg("/x/../../a", "1")}}, "", "leads out of the image"},
		{"hard link that leads out", []layer{{link("a", "../../etc/passwd")}}, "", "leads out of the image"},
		{"symbolic link that leads out is only text", []layer{{symlink("a", "../../../etc/passwd")}}, "a->../../../etc/passwd", ""},
		{"symbolic link named dot", []layer{{symlink(".", "/etc")}}, "", "replace the root"},
		{"symbolic link with no name", []layer{{symlink("/", "/etc")}}, "", "replace the root"},
		{"file named dot", []layer{{reg(".", "x")}}, "", "replace the root"},
		{"etc replaced by a link", []layer{{reg("etc/passwd", "1")}, {symlink("etc", "/host")}}, "etc->/host", ""},
		{"… and an entry beneath it in the same layer", []layer{{reg("etc/passwd", "1")}, {symlink("etc", "/host"), reg("etc/passwd", "2")}}, "", `beneath "etc", which the same layer has as a symbolic link`},
		{"… and an entry beneath it in the next layer", []layer{{symlink("etc", "/host")}, {reg("etc/passwd", "2")}}, "etc/ 755, etc/passwd=2", ""},
		{"entry beneath a file of the same layer", []layer{{reg("a", ""), reg("a/b/c", "")}}, "", `beneath "a", which the same layer has as a file`},
		{"entry beneath a hard link", []layer{{link("a", "x"), reg("a/b", "")}}, "", `as a hard link`},
		{"every device", []layer{{
			entry{tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: 1, Devminor: 3, Mode: 0o666}, ""},
			entry{tar.Header{Typeflag: tar.TypeBlock, Name: "b", Devmajor: 8, Devminor: 300}, ""},
			entry{tar.Header{Typeflag: tar.TypeFifo, Name: "p"}, ""},
		}}, "b device 0x10082c, c device 0x103, p named pipe 0x0", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var tars [][]byte
			for _, l := range c.layers {
				tars = append(tars, tarOf(t, l...))
			}
			s := openStore(t)
			i, err := addStack(s, "rules", tars...)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Fatalf("error is %v, expected one with %q", err, c.fails)
				}
				checkEmpty(t, s)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			b, err := i.Branch()
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			got, err := brief(b)
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}
