package rootfs

import (
	"fmt"

	"github.com/moby/sys/user"

	"unionfs/cow"
)

// OwnerPolicy lets a union show only the owners that have an ID in this process's user namespace: the kernel refuses
// writes to any other file. The rest is root's.
func OwnerPolicy() (cow.OwnerPolicy, error) {
	var policy cow.OwnerPolicy
	for _, m := range []struct {
		maps   func() ([]user.IDMap, error)
		ranges *[]cow.IDRange
	}{{user.CurrentProcessUIDMap, &policy.UIDs}, {user.CurrentProcessGIDMap, &policy.GIDs}} {
		mapped, err := m.maps()
		if err != nil {
			return policy, fmt.Errorf("reading the maps of the user namespace: %w", err)
		}
		for _, r := range mapped {
			*m.ranges = append(*m.ranges, cow.IDRange{First: uint32(r.ID), Size: uint32(r.Count)})
		}
		if len(mapped) == 1 && mapped[0].ID == 0 && mapped[0].Count >= 1<<32-1 {
			*m.ranges = nil // all of them
		}
	}
	return policy, nil
}

// HasOneID reports whether this process's user namespace has a single user ID.
func HasOneID() (bool, error) {
	owners, err := OwnerPolicy()
	return err == nil && isOneID(&owners), err
}

func isOneID(owners *cow.OwnerPolicy) bool { return len(owners.UIDs) == 1 && owners.UIDs[0].Size == 1 }
