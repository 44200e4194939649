package runner

import (
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// subordinate returns the user's ranges in /etc/subuid and /etc/subgid (subuid(5)), by name or number. None is no error;
// only one of the two kinds is, since with it neither would work.
func subordinate() (uids, gids []user.SubID, err error) {
	id := strconv.Itoa(os.Getuid())
	name := id
	if u, err := user.LookupUid(os.Getuid()); err == nil {
		name = u.Name
	}
	mine := func(s user.SubID) bool { return (s.Name == name || s.Name == id) && s.Count > 0 }
	read := func(path string) ([]user.SubID, error) {
		ranges, err := user.ParseSubIDFileFilter(path, mine)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", path, err)
		}
		return ranges, nil
	}
	if uids, err = read("/etc/subuid"); err != nil {
		return nil, nil, err
	}
	if gids, err = read("/etc/subgid"); err != nil {
		return nil, nil, err
	}
	if (len(uids) == 0) != (len(gids) == 0) {
		return nil, nil, fmt.Errorf("user %s has an entry in only one of /etc/subuid and /etc/subgid: give both (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s) or neither", name, name)
	}
	return uids, gids, nil
}

// namespaceMap maps own to 0 and the ranges, one after the other, to 1 and on. It returns no more lines than the kernel
// takes (340, user_namespaces(7)).
func namespaceMap(own int, ranges []user.SubID) []syscall.SysProcIDMap {
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: own, Size: 1}}
	next := int64(1)
	for _, r := range ranges {
		if len(m) == 340 || next+r.Count > math.MaxUint32 {
			break
		}
		m = append(m, syscall.SysProcIDMap{ContainerID: int(next), HostID: int(r.SubID), Size: int(r.Count)})
		next += r.Count
	}
	return m
}

// KeepID gives the calling user their own IDs in the container, whose other IDs are the subordinate ones: in maps of three pieces,
// as podman's. It is for users who have such IDs ([HasSubordinateIDs]).
func KeepID(spec *specs.Spec) error {
	uids, gids, err := subordinate()
	if err != nil {
		return err
	}
	if spec.Linux.UIDMappings, err = keepMap("user", os.Getuid(), uids); err != nil {
		return err
	}
	spec.Linux.GIDMappings, err = keepMap("group", os.Getgid(), gids)
	return err
}

// keepMap maps own to what is 0 in S, and the others in their order to the rest.
func keepMap(what string, own int, ranges []user.SubID) ([]specs.LinuxIDMapping, error) {
	total := int64(0)
	for _, e := range namespaceMap(own, ranges) {
		total += int64(e.Size)
	}
	if int64(own) >= total {
		return nil, fmt.Errorf("keeping the %s ID %d needs as many subordinate ones as come before it, and there are %d: give a larger range in /etc/sub%cid", what, own, total-1, what[0])
	}
	m := []specs.LinuxIDMapping{{ContainerID: uint32(own), HostID: 0, Size: 1}}
	if own > 0 {
		m = append(m, specs.LinuxIDMapping{ContainerID: 0, HostID: 1, Size: uint32(own)})
	}
	if after := total - int64(own) - 1; after > 0 {
		m = append(m, specs.LinuxIDMapping{ContainerID: uint32(own) + 1, HostID: uint32(own) + 1, Size: uint32(after)})
	}
	return m, nil
}

// mapArguments gives a map in the order in which newuidmap(1) takes it.
func mapArguments(m []syscall.SysProcIDMap) []string {
	var out []string
	for _, e := range m {
		out = append(out, strconv.Itoa(e.ContainerID), strconv.Itoa(e.HostID), strconv.Itoa(e.Size))
	}
	return out
}

// identityMap maps every ID that the calling process's user namespace has to itself.
func identityMap(own []user.IDMap) []syscall.SysProcIDMap {
	var m []syscall.SysProcIDMap
	for _, e := range own {
		m = append(m, syscall.SysProcIDMap{ContainerID: int(e.ID), HostID: int(e.ID), Size: int(e.Count)})
	}
	return m
}

// singleID reports whether a user namespace has one ID only, and which.
func singleID(own []user.IDMap) (int, bool) {
	if len(own) == 1 && own[0].Count == 1 {
		return int(own[0].ID), true
	}
	return 0, false
}

// setgroupsAllowed reports whether setgroups(2) is allowed in the calling process's user namespace
// (user_namespaces(7)).
func setgroupsAllowed() bool {
	data, err := os.ReadFile("/proc/self/setgroups")
	return err != nil || strings.TrimSpace(string(data)) == "allow"
}
