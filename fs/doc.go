// Package fs serves a [cow.Union] to the kernel through FUSE. Requests come in (conn.go), are told apart (dispatch.go), and become calls to
// cow; what a union is, it does not know.
//
// # Caching
//
// Only this server changes the upper branch and the lower ones don't change, so the kernel may keep whatever it was told:
// entries, attributes, names that are not there, symlinks, listings and data never expire. From that follows:
//
//   - OPEN, OPENDIR, CREATE, FLUSH and ACCESS are answered ENOSYS. The kernel remembers that for the life of the mount and
//     doesn't ask again, so a warm open, read, close or listing costs no request. READ, WRITE and READDIR come by node, with
//     handle 0; a new file comes as MKNOD, O_TRUNC as SETATTR; nothing tells when a file is closed.
//   - A name that is not there is a reply with node 0 and a lifetime, not the error ENOENT, which is not kept.
//   - With a writable union the kernel collects small writes (WRITEBACK_CACHE) and owns size, mtime and ctime of the files
//     that it has in memory.
//   - The mount has default_permissions: the kernel checks permissions, ACLs among them, and cow does not.
//
// # A server that can be replaced
//
// Nothing that a reply hands out belongs to this process. File handles are always 0, node IDs are cow's, positions in a
// listing are hashes of names, and a request is answered ENOSYS always or never (ENOSYS is remembered by the kernel and
// so binds every later server of the mount): OPEN, OPENDIR, CREATE, FLUSH, ACCESS, POLL, BMAP, SYNCFS and COPY_FILE_RANGE_64.
package fs
