package main

import (
	"reflect"
	"strings"
	"testing"

	"unionfs/fs"
)

// TestMountOptions: as mount(8) writes them, the last of two that contradict each other wins.
func TestMountOptions(t *testing.T) {
	for _, c := range []struct {
		given string
		want  fs.Options
		fails string
	}{
		{"", fs.Options{}, ""},
		{"defaults,default_permissions,relatime", fs.Options{}, ""},
		{"ro,noexec,nosuid,nodev,noatime,allow_other", fs.Options{ReadOnly: true, NoExec: true, NoSuid: true, NoDev: true, NoAtime: true, AllowOther: true}, ""},
		{"ro,noexec,rw,exec", fs.Options{}, ""},
		{"noacl,debug,fsname=mine", fs.Options{NoACL: true, Debug: true, FsName: "mine"}, ""},
		{"writeback=0", fs.Options{NoWriteback: true}, ""},
		{"writeback=0,writeback=1", fs.Options{}, ""},
		{"writeback", fs.Options{}, "writeback=0 or writeback=1"},
		{"writeback=yes", fs.Options{}, "writeback=0 or writeback=1"},
		{"noexecc", fs.Options{}, `unknown option "noexecc"; known are ro, rw`},
	} {
		var got fs.Options
		err := parseMountOptions([]string{c.given}, &got)
		switch {
		case c.fails != "":
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%q: %v, want %s", c.given, err, c.fails)
			}
		case err != nil || !reflect.DeepEqual(got, c.want):
			t.Errorf("%q: %+v, %v", c.given, got, err)
		}
	}
}
