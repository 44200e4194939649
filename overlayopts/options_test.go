package overlayopts

import (
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func ptr[T any](v T) *T { return &v }

func TestParse(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want Options
	}{
		{[]string{""}, Options{}},
		{[]string{"lowerdir=l/A:l/B,upperdir=/c/diff,workdir=/c/work,,volatile"},
			Options{Lower: []string{"l/A", "l/B"}, Upper: "/c/diff", Work: "/c/work", Volatile: true}},
		{[]string{`lowerdir=a\:b:c\,d:e\\:f=g`}, Options{Lower: []string{"a:b", "c,d", `e\`, "f=g"}}},
		{[]string{`upperdir=u\,1,workdir=w\:2`}, Options{Upper: "u,1", Work: "w:2"}},
		{[]string{"lowerdir+=a", "lowerdir+=b:c"}, Options{Lower: []string{"a", "b:c"}}},
		{[]string{"lowerdir=a", "lowerdir=b"}, Options{Lower: []string{"b"}}},
		{[]string{"uidmapping=0:1000:1:1:110000:65536,gidmapping=:5:6:7"},
			Options{UIDMap: []IDMap{{0, 1000, 1}, {1, 110000, 65536}}, GIDMap: []IDMap{{5, 6, 7}}}},
		{[]string{"squash_to_root"}, Options{SquashUID: ptr[uint32](0), SquashGID: ptr[uint32](0)}},
		{[]string{"squash_to_root,squash_to_gid=7"}, Options{SquashUID: ptr[uint32](0), SquashGID: ptr[uint32](7)}},
		{[]string{"squash_to_uid=8", "squash_to_root"}, Options{SquashUID: ptr[uint32](8), SquashGID: ptr[uint32](0)}},
		{[]string{"xattr_permissions=2,noacl,writeback=0,fsync=0"},
			Options{XattrPermissions: 2, NoACL: true, NoWriteback: true, Volatile: true}},
		{[]string{"writeback=0,fsync=0", "writeback=1,fsync=1"}, Options{}},
		{[]string{"timeout=0"}, Options{Timeout: ptr(time.Duration(0))}},
		{[]string{"timeout=1.5"}, Options{Timeout: ptr(1500 * time.Millisecond)}},
		{[]string{"timeout=1000000000000.0"}, Options{Timeout: ptr(time.Duration(math.MaxInt64))}},
		{[]string{"redirect_dir=off"}, Options{NoRedirect: true}},
		{[]string{"redirect_dir=off,redirect_dir=on"}, Options{}},
		{[]string{"metacopy=off,metacopy=on"}, Options{KeepMetacopy: true}},
		{[]string{"metacopy=off"}, Options{NoMetacopy: true}},
		{[]string{`ro,context="system_u:object_r:t:s0:c1,c2",nosuid`},
			Options{ReadOnly: true, NoSuid: true, Context: "system_u:object_r:t:s0:c1,c2"}},
		{[]string{`context=a\,b`}, Options{Context: "a,b"}},
		{[]string{"rw,nosuid,suid,nodev,noexec,noatime,allow_other,default_permissions,debug,fsname=x"},
			Options{NoExec: true, AllowOther: true, Debug: true, FsName: "x"}},
		{[]string{"dev,atime,ro,rw"}, Options{Dev: true, Atime: true}},
		{[]string{"threaded=1,fast_ino=1,static_nlink,xino=off,x-systemd.automount,index=off,userxattr,_netdev"}, Options{}},
		{[]string{"foo,bar=baz,ro=1", "foo"}, Options{Unknown: []string{"foo", "bar=baz", "ro=1", "foo"}}},
	} {
		var got Options
		for _, s := range c.in {
			if err := got.Parse(s); err != nil {
				t.Errorf("%q: %v", c.in, err)
			}
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q:\ngot  %+v\nwant %+v", c.in, got, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, in := range []string{
		"lowerdir=", "lowerdir=a::b", "lowerdir=a:", "upperdir=", "workdir=", "lowerdir+=",
		"uidmapping=", "uidmapping=0:1", "uidmapping=0:1:x", "uidmapping=0:1:0", "gidmapping=-1:0:1",
		"uidmapping=0:4294967295:1", "uidmapping=4294967290:0:10", "uidmapping=4294967296:0:1",
		"squash_to_uid=root", "squash_to_gid=4294967295", "xattr_permissions=3", "timeout=-1", "timeout=NaN", "timeout=soon",
		"writeback=2", "fsync=no", "redirect_dir=maybe", "metacopy=maybe",
	} {
		var o Options
		err := o.Parse("ro," + in)
		if err == nil {
			t.Errorf("%q is accepted: %+v", in, o)
			continue
		}
		if !strings.Contains(err.Error(), fmt.Sprintf("%q", in)) {
			t.Errorf("%q: the error doesn't name the option: %v", in, err)
		}
	}
}

func TestParseArgs(t *testing.T) {
	lower := Options{Lower: []string{"a"}}
	for _, c := range []struct {
		args string // separated by spaces
		want CommandLine
	}{
		{"-o lowerdir=a m", CommandLine{Options: lower, Target: "m"}},
		{"-olowerdir=a overlay m", CommandLine{Options: lower, Source: "overlay", Target: "m"}},
		{"overlay m -o lowerdir=a", CommandLine{Options: lower, Source: "overlay", Target: "m"}},
		{"-f m -o rw -o lowerdir=a", CommandLine{Options: lower, Target: "m", Foreground: true}},
		{"none m -n -s -v -t fuse.unionfs -o lowerdir=a", CommandLine{Options: lower, Source: "none", Target: "m"}},
		{"-o lowerdir=a -- -m", CommandLine{Options: lower, Target: "-m"}},
		{"-fs -o lowerdir=a m", CommandLine{Options: lower, Target: "m", Foreground: true}},
		{"-d -o lowerdir=a m", CommandLine{Options: Options{Lower: []string{"a"}, Debug: true}, Target: "m", Foreground: true}},
		{"--debug -o lowerdir=a m", CommandLine{Options: Options{Lower: []string{"a"}, Debug: true}, Target: "m", Foreground: true}},
		{"--version", CommandLine{Version: true}},
		{"-V x y z", CommandLine{Version: true}},
		{"-h", CommandLine{Help: true}},
		{"--help", CommandLine{Help: true}},
	} {
		got, err := ParseArgs(strings.Fields(c.args))
		if err != nil {
			t.Errorf("%q: %v", c.args, err)
			continue
		}
		if !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%q:\ngot  %+v\nwant %+v", c.args, *got, c.want)
		}
	}
	for args, want := range map[string]string{
		"":                              "no TARGET",
		"m":                             "lowerdir=",
		"-o upperdir=u m":               "workdir",
		"-o lowerdir=a":                 "no TARGET",
		"-o lowerdir=a m -o":            "-o needs a value",
		"-o lowerdir=a x m y":           `"y"`,
		"-o lowerdir=a m --frobnicate":  "--frobnicate",
		"-o lowerdir=a m -q":            "-q",
		"-o lowerdir=a m -t":            "-t needs a value",
		"-o lowerdir=a,timeout=never m": "timeout=never",
	} {
		if _, err := ParseArgs(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", args, err, want)
		}
	}
	if _, err := ParseArgs([]string{"-o", "lowerdir=a", ""}); err == nil {
		t.Error("an empty target is accepted")
	}
}

func TestIsMount(t *testing.T) {
	for args, want := range map[string]bool{
		"-o ro m":                     true,
		"-olowerdir=a m":              true,
		"overlay m -o rw,lowerdir=a":  true,
		"-f -o ro,lowerdir=a m":       true,
		"-f -o upperdir=lowerdir=a m": false,
		"frobnicate m -o ro":          false,
		"frobnicate -o":               false,
		"m":                           false,
		"":                            false,
	} {
		if got := IsMount(strings.Fields(args)); got != want {
			t.Errorf("%q: got %v", args, got)
		}
	}
}

// FuzzParse checks that nothing makes Parse panic, that what it accepts is in bounds, and that a list of lower directories
// comes back as it was escaped.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "lowerdir=a:b,upperdir=u,workdir=w", `lowerdir=a\:b\\:c\,d`, "uidmapping=0:1000:1:1:110000:65536",
		"squash_to_root,squash_to_uid=5", `context="a,b",ro`, "timeout=1e300", "timeout=.5,xattr_permissions=2", `lowerdir=\`,
		`context="`, "lowerdir+=x,lowerdir+=y", "=,=", "\x00",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var o Options
		if err := o.Parse(s); err == nil {
			for _, dir := range append(slices.Clone(o.Lower), o.Upper+"x", o.Work+"x") {
				if dir == "" || strings.ContainsRune(dir, 0) {
					t.Errorf("%q is accepted with the path %q", s, dir)
				}
			}
			for _, m := range append(slices.Clone(o.UIDMap), o.GIDMap...) {
				if m.Size == 0 || m.Disk+m.Size < m.Disk || m.Shown+m.Size < m.Shown {
					t.Errorf("%q is accepted with the map %v", s, m)
				}
			}
			if o.Timeout != nil && *o.Timeout < 0 {
				t.Errorf("%q is accepted with the lifetime %v", s, *o.Timeout)
			}
		}
		if s == "" || strings.ContainsRune(s, 0) {
			return
		}
		escaped := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(s)
		var again Options
		if err := again.Parse("lowerdir=" + escaped + ":" + escaped); err != nil || !slices.Equal(again.Lower, []string{s, s}) {
			t.Errorf("%q comes back as %q (%v)", s, again.Lower, err)
		}
	})
}
