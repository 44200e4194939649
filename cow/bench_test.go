package cow

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// benchUnion is a union of ten branches, each with a hundred files in one directory that all have.
func benchUnion(b *testing.B) (*Union, *Node) {
	fds := NewDescriptors(256)
	o := Options{Upper: b.TempDir(), Work: b.TempDir(), Descriptors: fds}
	for i := range 10 {
		dir := b.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "dir"), 0o755); err != nil {
			b.Fatal(err)
		}
		for j := range 100 {
			if err := os.WriteFile(filepath.Join(dir, "dir", fmt.Sprintf("f%d-%d", i, j)), make([]byte, 100), 0o644); err != nil {
				b.Fatal(err)
			}
		}
		br, err := OpenDirBranch(dir, DirOptions{Descriptors: fds})
		if err != nil {
			b.Fatal(err)
		}
		o.Lower = append(o.Lower, br)
	}
	u, err := New(o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { u.Close(); fds.Close() })
	var a Attr
	n, err := u.Lookup(u.Root(), "dir", &a)
	if err != nil {
		b.Fatal(err)
	}
	return u, n
}

func BenchmarkLookup(b *testing.B) {
	u, dir := benchUnion(b)
	var a Attr
	held, err := u.Lookup(dir, "f5-50", &a)
	if err != nil {
		b.Fatal(err)
	}
	defer u.Forget(held, 1)
	b.ReportAllocs()
	for b.Loop() {
		n, err := u.Lookup(dir, "f5-50", &a)
		if err != nil {
			b.Fatal(err)
		}
		u.Forget(n, 1)
	}
}

func BenchmarkLookupMiss(b *testing.B) {
	u, dir := benchUnion(b)
	var a Attr
	b.ReportAllocs()
	for b.Loop() {
		if _, err := u.Lookup(dir, "no such name", &a); err == nil {
			b.Fatal("found")
		}
	}
}

func BenchmarkGetattr(b *testing.B) {
	u, dir := benchUnion(b)
	var a Attr
	n, err := u.Lookup(dir, "f5-50", &a)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := u.Getattr(n, &a); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	u, dir := benchUnion(b)
	var a Attr
	n, err := u.Lookup(dir, "f5-50", &a)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := u.Read(n, 0, buf); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadDir(b *testing.B) {
	u, dir := benchUnion(b)
	buf := make([]DirEnt, 0, 2000)
	b.ReportAllocs()
	for b.Loop() {
		if got, err := u.ReadDir(dir, 0, buf); err != nil || len(got) != 1000 {
			b.Fatal(len(got), err)
		}
	}
}

func BenchmarkCreateUnlink(b *testing.B) {
	u, dir := benchUnion(b)
	var a Attr
	b.ReportAllocs()
	for b.Loop() {
		n, err := u.Create(dir, "new", 0o644, Owner{}, &a)
		if err != nil {
			b.Fatal(err)
		}
		if err := u.Unlink(dir, "new"); err != nil {
			b.Fatal(err)
		}
		u.Forget(n, 1)
	}
}
