package fs

// What is changed in the union by this process itself, and not through the mount, has to be said to the kernel, which else
// keeps what it knows. None of these may be called from within a request of the kernel's: it holds locks that they want.

// AttributesChanged says that the attributes of a file, by its node ID, are other ones.
func (s *Server) AttributesChanged(node uint64) {
	s.raw.InodeNotify(node, -1, 0) // an error says that it doesn't know the file
}

// NameChanged says that a name of a directory, by its node ID, means another file, or one at all.
func (s *Server) NameChanged(dir uint64, name string) { s.raw.EntryNotify(dir, name) }
