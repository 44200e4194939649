package runner

import (
	"reflect"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// EarlyInit is the init of a container, started before its supervisor has read what that is to be: for most containers an init is started
// the same way, and it takes longer to come up than anything else in a start. One that was started for the container that it turns out not
// to be is ended, and another one started.
type EarlyInit struct{ init *initProcess }

// isUsual reports whether the init of a container will most probably be started as startEarly does.
func isUsual(spec *specs.Spec) bool {
	for _, ns := range usualNamespaces() {
		if !hasNewNamespace(spec, ns.Type) {
			return false
		}
	}
	limits, err := limitsOf(spec.Linux.Resources, false)
	name, uid := spec.Annotations[AnnotationUser], spec.Process.User.UID
	return err == nil && len(limits) == 0 && len(spec.Linux.UIDMappings) == 0 && spec.Annotations[AnnotationRuntime] == "" &&
		name == "" && (uid == 0 || !NeedsUserNamespace())
}

// startEarly starts the init of a usual container. The calling goroutine stays on its thread for good: it is to be the one that calls
// [Supervise]. It returns nil if that fails, for then [Supervise] fails too, and says so.
func startEarly() *EarlyInit {
	runtime.LockOSThread()
	if ownMounts(true) != nil {
		return nil
	}
	p := &initProcess{shared: &shared{}, gone: make(chan struct{}), ownTime: true}
	early := initConfig{Spec: &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Namespaces: usualNamespaces()}}}
	var err error
	if p.attr, err = early.attributes(); err == nil {
		err = p.makeCommand()
	}
	if err == nil {
		err = p.start()
	}
	if err != nil {
		p.abandon()
		p.close()
		return nil
	}
	return &EarlyInit{p}
}

// adopt has p, which has been prepared but for its command, be the process that was started early, if there is one that is as p is to be,
// and reports whether that is so. One that is not is ended.
func (e *EarlyInit) adopt(p *initProcess, limits *cgroups) bool {
	if !e.isThere() {
		return false
	}
	fits := limits == nil && len(p.shared.namespaces) == 0 && len(p.shared.mounts) == 0 && p.ownTime == e.init.ownTime &&
		reflect.DeepEqual(p.attr, e.init.attr)
	if !fits {
		e.abandon()
		return false
	}
	p.cmd, p.wire, p.gone = e.init.cmd, e.init.wire, e.init.gone
	e.init = nil
	return true
}

// abandon ends the process, if it is there still and nobody's.
func (e *EarlyInit) abandon() {
	if !e.isThere() {
		return
	}
	e.init.abandon()
	e.init.close()
	e.init = nil
}

func (e *EarlyInit) isThere() bool { return e != nil && e.init != nil }
