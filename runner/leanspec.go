package runner

import "github.com/opencontainers/runtime-spec/specs-go"

// encoding/json learns every type that a value could have parts of before it reads any. A specification has some sixty of them, which
// takes most of the 2.6 ms that its reading takes in a new process; half of them are about what an init never looks at.

// absent stands for a part of a specification that is left out.
type absent struct{}

// leanConfig is an initConfig in JSON with no more of the specification than P2 looks at: its fields hide those that they are named for.
type leanConfig struct {
	*initConfig
	Spec *leanSpec `json:"spec"`
}

type leanSpec struct {
	*specs.Spec
	Linux   *leanLinux `json:"linux,omitempty"`
	Hooks   *absent    `json:"hooks,omitempty"`
	Solaris *absent    `json:"solaris,omitempty"`
	Windows *absent    `json:"windows,omitempty"`
	VM      *absent    `json:"vm,omitempty"`
	ZOS     *absent    `json:"zos,omitempty"`
	FreeBSD *absent    `json:"freebsd,omitempty"`
}

type leanLinux struct {
	*specs.Linux
	Resources    *absent `json:"resources,omitempty"` // P1 sees to those
	NetDevices   *absent `json:"netDevices,omitempty"`
	Seccomp      *absent `json:"seccomp,omitempty"` // comes compiled
	IntelRdt     *absent `json:"intelRdt,omitempty"`
	MemoryPolicy *absent `json:"memoryPolicy,omitempty"`
	Personality  *absent `json:"personality,omitempty"`
}

// lean is the configuration as P2 gets it.
func (cfg *initConfig) lean() *leanConfig {
	return &leanConfig{initConfig: cfg, Spec: &leanSpec{Spec: cfg.Spec, Linux: &leanLinux{Linux: cfg.Spec.Linux}}}
}

// emptyLean is one to read into.
func emptyLean() *leanConfig {
	return (&initConfig{Spec: &specs.Spec{Linux: &specs.Linux{}}}).lean()
}

// full is the configuration that was read.
func (l *leanConfig) full() initConfig {
	cfg := *l.initConfig
	cfg.Spec = l.Spec.Spec
	cfg.Spec.Linux = l.Spec.Linux.Linux
	return cfg
}
