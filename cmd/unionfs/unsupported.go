package main

import "strings"

// insteadOf says what to do without one of Docker's flags that have no meaning here; "" for others.
func insteadOf(typed string) string {
	name, _, _ := strings.Cut(typed, "=")
	return map[string]string{
		"link":               "use a network: containers on one that \"unionfs network create\" made find one another by name",
		"link-local-ip":      "containers have the addresses of their networks only",
		"gpus":               "give the devices by --device, such as /dev/nvidia0, and the driver's files by -v",
		"device-cgroup-rule": "there is no device cgroup: give single devices by --device",
		"cgroup-parent":      "a container's cgroups are below the caller's own",
		"storage-opt":        "there is no quota on a container's files",
		"volume-driver":      "volumes are directories of this machine; mount other storage yourself, and give it by -v",
		"isolation":          "it is for Windows",
		"cpu-rt-period":      "real-time limits are of cgroup v1 only; see --cpus",
		"cpu-rt-runtime":     "real-time limits are of cgroup v1 only; see --cpus",
		"kernel-memory":      "the kernel has taken this limit away; see --memory",
		"memory-swappiness":  "cgroup v2 has none; see --memory-swap",
		"oom-kill-disable":   "cgroup v2 has none; see --memory",
		"blkio-weight-device": "weights are for all disks together, by --blkio-weight; single disks have " +
			"--device-read-bps and the like",
		"use-api-socket": "there is no daemon, and so no socket of its",
		"checkpoint":     "checkpoints are not supported",
		"checkpoint-dir": "checkpoints are not supported",
	}[name]
}
