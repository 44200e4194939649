// Package testimage makes the real input of end-to-end tests: a Debian root split over layers with whiteouts and opaque
// directories among them, a small BusyBox image, a local Debian package, and a real registry to pull them from.
//
// What takes long is made once and kept in [os.TempDir] under a key of what it is made from, so that every package's
// tests and every run of them share it.
package testimage
