package runner

import (
	"fmt"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capabilityMasks are the sets of a process as bit masks.
type capabilityMasks struct {
	bounding, effective, permitted, inheritable, ambient uint64
}

// capabilityMask translates the names of an OCI specification. None given means none had.
func capabilityMask(c *specs.LinuxCapabilities) (capabilityMasks, error) {
	var m capabilityMasks
	if c == nil {
		return m, nil
	}
	for _, set := range []struct {
		names []string
		mask  *uint64
	}{{c.Bounding, &m.bounding}, {c.Effective, &m.effective}, {c.Permitted, &m.permitted}, {c.Inheritable, &m.inheritable}, {c.Ambient, &m.ambient}} {
		for _, name := range set.names {
			n, ok := capabilityNumber(name)
			if !ok {
				return m, fmt.Errorf("there is no capability %q", name)
			}
			*set.mask |= 1 << n
		}
	}
	return m, nil
}

func capabilityNumber(name string) (uint, bool) {
	short := strings.ToLower(strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
	for _, c := range capability.ListKnown() {
		if c.String() == short {
			return uint(c), true
		}
	}
	return 0, false
}

// restrictThread gives the calling thread, which must be locked, the bounding and inheritable sets of the command, and no
// ambient ones. Its permitted set stays, to become the command's user with; executing the command leaves of it what the
// bounding set has.
func restrictThread(m capabilityMasks) error {
	last, err := capability.LastCap()
	if err != nil {
		return err
	}
	for c := capability.Cap(0); c <= last; c++ {
		if m.bounding&(1<<uint(c)) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil {
			return fmt.Errorf("dropping %s from the bounding set: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clearing the ambient capabilities: %w", err)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("reading the capabilities: %w", err)
	}
	data[0].Inheritable, data[1].Inheritable = uint32(m.inheritable), uint32(m.inheritable>>32)
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("setting the inheritable capabilities: %w", err)
	}
	return nil
}

// ambientList lists the capabilities of a mask.
func capabilityList(mask uint64) []uintptr {
	var out []uintptr
	for c := range uint(64) {
		if mask&(1<<c) != 0 {
			out = append(out, uintptr(c))
		}
	}
	return out
}
