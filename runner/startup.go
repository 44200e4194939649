package runner

import (
	"runtime/debug"
	"sync"
	"time"
)

// A start is over before a garbage collection would be of use, and would have two.
const (
	startMemory = 64 << 20 // bytes from which it collects all the same
	startSpan   = time.Second
)

// postponeCollection keeps the garbage collector of this process from running while a container starts. settle, which may be
// called more than once, ends that a while later, and gives back what was used for the start.
func postponeCollection() (settle func()) {
	percent := debug.SetGCPercent(-1)
	if percent < 0 {
		return func() {} // it is somebody else's to end
	}
	limit := debug.SetMemoryLimit(startMemory)
	return sync.OnceFunc(func() {
		time.AfterFunc(startSpan, func() {
			debug.SetGCPercent(percent)
			debug.SetMemoryLimit(limit)
			debug.FreeOSMemory()
		})
	})
}
