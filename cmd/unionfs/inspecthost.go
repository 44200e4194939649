package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"unionfs/runner"
	"unionfs/supervisor"
	"unionfs/volumes"
)

// hostSettings is HostConfig in Docker's "inspect": what was asked for when the container was made, or by "update" since. What
// has no meaning here is left out; PortBindings are under NetworkSettings.
type hostSettings struct {
	Binds         []string
	NetworkMode   string
	RestartPolicy struct {
		Name              string
		MaximumRetryCount int
	}
	AutoRemove     bool
	VolumeDriver   string
	CapAdd         []string // beside Docker's defaults
	CapDrop        []string // of Docker's defaults
	ExtraHosts     []string
	GroupAdd       []string
	IpcMode        string
	PidMode        string
	UTSMode        string
	CgroupnsMode   string
	Privileged     bool
	ReadonlyRootfs bool
	SecurityOpt    []string
	Tmpfs          map[string]string `json:",omitempty"`
	ShmSize        int64
	Sysctls        map[string]string `json:",omitempty"`
	Runtime        string
	Memory         int64
	MemorySwap     int64
	NanoCpus       int64
	CpuShares      uint64
	CpuPeriod      uint64
	CpuQuota       int64
	CpusetCpus     string
	CpusetMems     string
	BlkioWeight    uint16
	PidsLimit      int64
	OomScoreAdj    int
	Ulimits        []ulimit
	LogConfig      struct {
		Type   string
		Config map[string]string
	}
	MaskedPaths   []string
	ReadonlyPaths []string
}

// ulimit is a resource limit of a process.
type ulimit struct {
	Name       string
	Hard, Soft int64
}

func hostConfigOf(container *runner.Container) hostSettings {
	spec := container.Spec
	h := hostSettings{NetworkMode: supervisor.NetworkMode(container), AutoRemove: container.AutoRemove(), VolumeDriver: "local", Runtime: "unionfs"}
	policy := container.RestartPolicy()
	h.RestartPolicy.Name, h.RestartPolicy.MaximumRetryCount = policy.Name, policy.Most
	h.ReadonlyRootfs = spec.Root != nil && spec.Root.Readonly
	h.MaskedPaths, h.ReadonlyPaths, h.Sysctls = spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths, spec.Linux.Sysctl
	if groups := spec.Annotations[runner.AnnotationGroups]; groups != "" {
		h.GroupAdd = strings.Split(groups, ",")
	}
	h.fillMounts(container)
	h.fillLimits(spec)
	h.fillIsolation(spec)
	h.LogConfig.Type = "k8s-file"
	h.LogConfig.Config = map[string]string{
		"max-size": annotationOr(spec, runner.AnnotationLogSize, strconv.Itoa(runner.DefaultLogSize)),
		"max-file": annotationOr(spec, runner.AnnotationLogFiles, strconv.Itoa(runner.DefaultLogFiles)),
	}
	for name, annotation := range map[string]string{"labels": annotationLogLabels, "env": annotationLogEnv} {
		if value := spec.Annotations[annotation]; value != "" {
			h.LogConfig.Config[name] = value
		}
	}
	return h
}

func annotationOr(spec *specs.Spec, name, other string) string {
	if value := spec.Annotations[name]; value != "" {
		return value
	}
	return other
}

func (h *hostSettings) fillMounts(container *runner.Container) {
	for _, v := range supervisor.VolumesOf(container) {
		options := strings.Join(v.Options, ",")
		switch {
		case v.Kind == volumes.Tmpfs:
			if h.Tmpfs == nil {
				h.Tmpfs = map[string]string{}
			}
			h.Tmpfs[v.Target] = options
		case v.Kind == volumes.Bind || v.Kind == volumes.Named && !v.Anonymous:
			bind := v.Source + ":" + v.Target
			if options != "" {
				bind += ":" + options
			}
			h.Binds = append(h.Binds, bind)
		}
	}
	for _, m := range container.Spec.Mounts {
		if m.Destination != "/dev/shm" {
			continue
		}
		for _, option := range m.Options {
			size, ok := strings.CutPrefix(option, "size=")
			if n, err := strconv.ParseInt(strings.TrimSuffix(size, "k"), 10, 64); ok && err == nil {
				if h.ShmSize = n; strings.HasSuffix(size, "k") {
					h.ShmSize = n << 10
				}
			}
		}
	}
}

func (h *hostSettings) fillLimits(spec *specs.Spec) {
	for _, l := range spec.Process.Rlimits {
		h.Ulimits = append(h.Ulimits, ulimit{Name: strings.ToLower(strings.TrimPrefix(l.Type, "RLIMIT_")), Hard: int64(l.Hard), Soft: int64(l.Soft)})
	}
	if score := spec.Process.OOMScoreAdj; score != nil {
		h.OomScoreAdj = *score
	}
	r := spec.Linux.Resources
	if r == nil {
		return
	}
	if m := r.Memory; m != nil {
		h.Memory, h.MemorySwap = valueOf(m.Limit), valueOf(m.Swap)
	}
	if c := r.CPU; c != nil {
		h.CpuShares, h.CpuQuota, h.CpuPeriod = valueOf(c.Shares), valueOf(c.Quota), valueOf(c.Period)
		h.CpusetCpus, h.CpusetMems = c.Cpus, c.Mems
		if h.CpuPeriod > 0 {
			h.NanoCpus = h.CpuQuota * 1e9 / int64(h.CpuPeriod)
		}
	}
	if r.BlockIO != nil {
		h.BlkioWeight = valueOf(r.BlockIO.Weight)
	}
	if r.Pids != nil {
		h.PidsLimit = valueOf(r.Pids.Limit)
	}
}

// valueOf is what p points at; zero if it is nil.
func valueOf[T any](p *T) (value T) {
	if p != nil {
		value = *p
	}
	return value
}

func (h *hostSettings) fillIsolation(spec *specs.Spec) {
	mode := func(kind specs.LinuxNamespaceType, annotation string) string {
		if other := spec.Annotations[annotation]; other != "" {
			return "container:" + other
		}
		if slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind }) {
			return "private"
		}
		return "host"
	}
	h.IpcMode, h.PidMode, h.UTSMode, h.CgroupnsMode = mode(specs.IPCNamespace, runner.AnnotationIPC), mode(specs.PIDNamespace, runner.AnnotationPID),
		mode(specs.UTSNamespace, runner.AnnotationUTS), mode(specs.CgroupNamespace, runner.AnnotationCgroup)
	if spec.Process.Capabilities != nil {
		have, usual := spec.Process.Capabilities.Bounding, runner.DefaultCapabilities()
		for _, name := range have {
			if !slices.Contains(usual, name) {
				h.CapAdd = append(h.CapAdd, name)
			}
		}
		for _, name := range usual {
			if !slices.Contains(have, name) {
				h.CapDrop = append(h.CapDrop, name)
			}
		}
	}
	h.Privileged = len(spec.Linux.MaskedPaths) == 0 && spec.Linux.Seccomp == nil && slices.Contains(h.CapAdd, "CAP_SYS_ADMIN")
	if spec.Process.NoNewPrivileges {
		h.SecurityOpt = append(h.SecurityOpt, "no-new-privileges")
	}
	if spec.Linux.Seccomp == nil {
		h.SecurityOpt = append(h.SecurityOpt, "seccomp=unconfined")
	}
}
