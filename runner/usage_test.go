package runner

import (
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestUsage compares what a container uses with what it was made to use, by its processes and by its cgroups.
func TestUsage(t *testing.T) {
	const held = 64 << 20
	// dd holds its buffer while it waits for the pipe's reader; the loop runs until it is killed.
	script := "(while :; do :; done) & dd if=/dev/zero bs=64M count=1 2>/dev/null | { read x; sleep 1000; } & dd if=/dev/zero of=/file bs=1M count=4 conv=fsync 2>/dev/null; wait"
	look := func(t *testing.T, d *detached, limited bool) {
		var u Usage
		eventually(t, "it uses what it is to use", func() bool {
			var err error
			u, err = d.container.Usage()
			must(t, err)
			return u.Memory > held && u.CPU > 100*time.Millisecond && u.BlockWrite >= 4<<20
		})
		if u.Memory > 4*held || u.PIDs < 5 || u.PIDs > 40 || u.CPU > 10*time.Minute {
			t.Errorf("%+v", u)
		}
		want := Usage{}
		if limited {
			want = Usage{MemoryLimit: 512 << 20, PIDsLimit: 100 + initThreads}
		}
		if u.MemoryLimit != want.MemoryLimit || u.PIDsLimit != want.PIDsLimit || limited != (u.MemoryPeak >= held) {
			t.Errorf("%+v, want the limits of %+v", u, want)
		}
		must(t, d.container.Kill(time.Minute))
		if _, err := d.container.Usage(); err == nil {
			t.Error("no error after its end")
		}
	}
	inEveryWorld(t, func(t *testing.T, w *ward) { look(t, w.detach(w.shell(script)), false) })
	inWorlds(t, worlds()[:1], func(t *testing.T, w *ward) {
		r := w.shell(script)
		r.Spec.Linux.Resources = &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: pointer[int64](512 << 20), Swap: pointer[int64](-1)}, Pids: &specs.LinuxPids{Limit: pointer[int64](100)},
			BlockIO: &specs.LinuxBlockIO{Weight: pointer[uint16](500)},
		}
		look(t, w.detach(r), true)
	})
}
