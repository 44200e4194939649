// Package holder keeps a mount alive when its server dies.
//
// A FUSE connection ends when the last descriptor of it is closed, and every process on the mount then gets errors. So two
// processes make a mount: the holder, which keeps a duplicate of the descriptor and does nothing else, and the server, its child.
// When the server ends and the mount is still there, the holder starts another and gives it the descriptor; what the kernel had
// asked and not been answered, it asks again (see package fs). A server that hangs is ended, and replaced in the same way. So is
// one that a newer program is to take the place of.
//
// The holder knows nothing of file systems: not what is mounted, nor what the server sends it to keep. The two talk over a
// socket, in packets of one letter and a payload (link.go):
//
//	holder                      server
//	start, kept files  ------>            begin; with what an earlier server gave to keep
//	                   <------  keep      keep this for the next: descriptors and bytes
//	                   <------  ready     requests are answered
//	ping               ------>
//	                   <------  pong
//	                   <------  write     this to the device, and say when that is done
//	written            ------>
//	question, again    ------>            for the process that the holder is a part of; again: a server that died has got it
//	                   <------  answer
//
// To replace a server by another program, the holder starts that beside the old one. It begins as far as it can, and says so;
// then the old one is ended, and the new one told to go on:
//
//	start, standby     ------>
//	                   <------  standing by
//	go                 ------>
//	                   <------  ready
//
// The first server can be the holder's own process, which has a child take its place in the same way ([First]).
package holder
