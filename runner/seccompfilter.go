package runner

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// compileSeccomp translates a profile into a program for the kernel, for a machine of the kind goarch. nil means that
// there is nothing to filter.
//
// The meaning is libseccomp's and runc's, which the OCI specification leaves to them:
//
//   - A system call that this table of names doesn't have can't be called by its name either: the rule is left out.
//   - A rule applies when all its argument conditions hold; where two are about the same argument, when any of them does.
//   - Of several rules for a system call the first that applies counts, those with conditions before the one without.
//   - A system call that is newer than all that the profile names gets ENOSYS in place of an error or death, so that C
//     libraries fall back to older ones.
//   - Architectures that the profile doesn't list, with its own always among them, kill the process; x32 gets ENOSYS.
func compileSeccomp(profile *specs.LinuxSeccomp, goarch string) (*seccompFilter, error) {
	if profile == nil {
		return nil, nil
	}
	if profile.ListenerPath != "" || profile.ListenerMetadata != "" {
		return nil, errors.New("a listener (listenerPath) is not supported")
	}
	flags, err := seccompFlags(profile.Flags)
	if err != nil {
		return nil, err
	}
	rules, err := checkSeccompRules(profile)
	if err != nil {
		return nil, err
	}
	machines, ok := seccompMachines(goarch)
	if !ok {
		return nil, fmt.Errorf("there are no seccomp filters for the architecture %s yet; \"--security-opt seccomp=unconfined\" does without", goarch)
	}
	program, err := rules.assemble(machines, profile.Architectures)
	if err != nil {
		return nil, err
	}
	return &seccompFilter{Flags: flags, Program: program}, nil
}

// filterProgram is a program in the making. All of it grows in one piece: a filter is made at every start of a container, and what
// touches new memory there costs more than what computes.
type filterProgram []unix.SockFilter

// usualFilter is more instructions than the usual profile makes.
const usualFilter = 2048

func (p *filterProgram) add(instructions ...unix.SockFilter) { *p = append(*p, instructions...) }

// leaveRoom leaves room for an instruction, and returns where.
func (p *filterProgram) leaveRoom() int {
	p.add(unix.SockFilter{})
	return len(*p) - 1
}

// branchAt has the program, in the room at an instruction, go on with what has been added since or behind that, by how the accumulator
// compares with limit.
func (p *filterProgram) branchAt(at int, limit uint32) {
	below := len(*p) - at - 1
	if below <= math.MaxUint8 {
		(*p)[at] = jump(unix.BPF_JGE, limit, uint8(below), 0)
		return
	}
	*p = slices.Insert(*p, at+1, skip(uint32(below)))
	(*p)[at] = jump(unix.BPF_JGE, limit, 0, 1)
}

// assemble makes the program for those kinds of system calls that are listed, and the machine's own.
func (r *seccompRules) assemble(machines []seccompMachine, listed []specs.Arch) ([]unix.SockFilter, error) {
	program := make(filterProgram, 0, usualFilter)
	program.add(loadWord(seccompArch))
	for _, m := range machines {
		if m.name != machines[0].name && !slices.Contains(listed, m.name) {
			continue
		}
		if m.name == specs.ArchX32 {
			continue // it is told from x86-64 by the number only
		}
		program.add(jump(unix.BPF_JEQ, m.audit, 1, 0))
		past := program.leaveRoom()
		program.add(loadWord(seccompNumber))
		if m.name == specs.ArchX86_64 {
			at := program.leaveRoom()
			r.addMachine(&program, m)
			program.branchAt(at, x32Bit)
			if i := slices.IndexFunc(machines, func(o seccompMachine) bool { return o.name == specs.ArchX32 }); slices.Contains(listed, specs.ArchX32) {
				r.addMachine(&program, machines[i])
			} else {
				program.add(answerBy(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)))
			}
		} else {
			r.addMachine(&program, m)
		}
		program[past] = skip(uint32(len(program) - past - 1))
	}
	program.add(answerBy(unix.SECCOMP_RET_KILL_PROCESS))
	if len(program) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("it needs %d instructions; the kernel takes %d", len(program), unix.BPF_MAXINSNS)
	}
	return program, nil
}

// The instructions that filters are made of (the kernel's networking/filter.rst).

func loadWord(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func andWord(mask uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}
}

// jump compares the accumulator with value and skips so many instructions.
func jump(comparison uint16, value uint32, ifTrue, ifFalse uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | comparison, K: value, Jt: ifTrue, Jf: ifFalse}
}

func skip(n uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: n}
}

func answerBy(value uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: value}
}

// seccompRules are the rules of a profile, checked, by name.
type seccompRules struct {
	fallback uint32 // the answer to what no rule applies to
	newer    uint32 // the answer to system calls that the profile's author didn't know
	byName   map[string][]seccompRule
}

// seccompRule is what to answer if the conditions hold.
type seccompRule struct {
	conditions []specs.LinuxSeccompArg // no two about one argument
	answer     uint32
}

func checkSeccompRules(profile *specs.LinuxSeccomp) (*seccompRules, error) {
	fallback, err := seccompAnswer(profile.DefaultAction, profile.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("default action: %w", err)
	}
	out := &seccompRules{fallback: fallback, newer: fallback, byName: make(map[string][]seccompRule, 512)}
	switch profile.DefaultAction {
	case specs.ActAllow, specs.ActLog, specs.ActTrace:
	default:
		out.newer = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	for _, call := range profile.Syscalls {
		answer, err := seccompAnswer(call.Action, call.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("system calls %q: %w", call.Names, err)
		}
		same := map[uint]bool{}
		twice := false
		for _, c := range call.Args {
			if c.Index > 5 {
				return nil, fmt.Errorf("system calls %q: there is no argument %d", call.Names, c.Index)
			}
			switch c.Op {
			case specs.OpEqualTo, specs.OpNotEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpMaskedEqual:
			default:
				return nil, fmt.Errorf("system calls %q: there is no operator %q", call.Names, c.Op)
			}
			twice = twice || same[c.Index]
			same[c.Index] = true
		}
		rules := []seccompRule{{call.Args, answer}}
		if twice {
			rules = nil
			for _, c := range call.Args {
				rules = append(rules, seccompRule{[]specs.LinuxSeccompArg{c}, answer})
			}
		}
		for _, name := range call.Names {
			out.byName[name] = append(out.byName[name], rules...)
		}
	}
	for _, rules := range out.byName {
		slices.SortStableFunc(rules, func(a, b seccompRule) int {
			return min(len(b.conditions), 1) - min(len(a.conditions), 1)
		})
	}
	return out, nil
}

// span is what follows for all system calls from a number on, until the next span.
type span struct {
	first uint32
	rules []seccompRule // the last has no conditions
}

// addMachine adds the part of the program for one kind of system calls. It starts with the number in the accumulator, and
// always returns.
func (r *seccompRules) addMachine(p *filterProgram, m seccompMachine) {
	type call struct {
		number uint32
		rules  []seccompRule
	}
	calls := make([]call, 0, 512)
	for name, number := range m.calls() {
		if rules, ok := r.byName[name]; ok {
			calls = append(calls, call{number, rules})
		}
	}
	slices.SortFunc(calls, func(a, b call) int { return cmp.Compare(a.number, b.number) })
	fallback := seccompRule{answer: r.fallback}
	spans := make([]span, 0, 2*len(calls)+2)
	spans = append(spans, span{0, []seccompRule{fallback}})
	add := func(first uint32, rules []seccompRule) {
		before := &spans[len(spans)-1]
		switch {
		case len(before.rules) == 1 && len(rules) == 1 && before.rules[0].answer == rules[0].answer:
		case before.first == first:
			before.rules = rules
		default:
			spans = append(spans, span{first, rules})
		}
	}
	next := uint32(0)
	for _, c := range calls {
		if c.number > next {
			add(next, []seccompRule{fallback})
		}
		rules := c.rules
		if i := slices.IndexFunc(rules, func(r seccompRule) bool { return len(r.conditions) == 0 }); i >= 0 {
			rules = rules[:i+1]
		} else {
			rules = append(slices.Clip(rules), fallback)
		}
		add(c.number, rules)
		next = c.number + 1
	}
	add(next, []seccompRule{{answer: r.newer}})
	p.search(spans)
}

// search adds what finds the span of the number in the accumulator by halves.
func (p *filterProgram) search(spans []span) {
	if len(spans) == 1 {
		for _, rule := range spans[0].rules { // the first whose conditions hold answers
			p.add(rule.instructions()...)
		}
		return
	}
	half := len(spans) / 2
	at := p.leaveRoom()
	p.search(spans[:half])
	p.branchAt(at, spans[half].first)
	p.search(spans[half:])
}

// instructions returns the answer if the conditions hold, and else falls through.
func (r seccompRule) instructions() []unix.SockFilter {
	out := []unix.SockFilter{answerBy(r.answer)}
	for _, c := range slices.Backward(r.conditions) {
		out = append(condition(c, uint8(len(out))), out...)
	}
	return out
}

// condition falls through if an argument, which the filter sees in two halves, is as c says, and otherwise skips the rest
// instructions that follow.
func condition(c specs.LinuxSeccompArg, rest uint8) []unix.SockFilter {
	low, high := seccompHalves(c.Index)
	value := c.Value
	if c.Op == specs.OpMaskedEqual {
		value = c.ValueTwo // under the mask c.Value
	}
	lo, hi := uint32(value), uint32(value>>32)
	if c.Op == specs.OpMaskedEqual {
		return []unix.SockFilter{
			loadWord(high),
			andWord(uint32(c.Value >> 32)),
			jump(unix.BPF_JEQ, hi, 0, rest+3),
			loadWord(low),
			andWord(uint32(c.Value)),
			jump(unix.BPF_JEQ, lo, 0, rest),
		}
	}
	loadHigh, loadLow := loadWord(high), loadWord(low)
	switch c.Op {
	case specs.OpEqualTo:
		return []unix.SockFilter{
			loadHigh,
			jump(unix.BPF_JEQ, hi, 0, rest+2),
			loadLow,
			jump(unix.BPF_JEQ, lo, 0, rest),
		}
	case specs.OpNotEqual:
		return []unix.SockFilter{
			loadHigh,
			jump(unix.BPF_JEQ, hi, 0, 2),
			loadLow,
			jump(unix.BPF_JEQ, lo, rest, 0),
		}
	}
	// An order: decided by the high halves unless they are the same.
	greater := c.Op == specs.OpGreaterThan || c.Op == specs.OpGreaterEqual
	order := jump(unix.BPF_JGT, hi, 3, 0) // past the low halves, to what follows
	if !greater {
		order.Jt = rest + 3
	}
	differ := jump(unix.BPF_JEQ, hi, 0, 2)
	if greater {
		differ.Jf = rest + 2
	}
	var final unix.SockFilter
	switch c.Op {
	case specs.OpGreaterThan:
		final = jump(unix.BPF_JGT, lo, 0, rest)
	case specs.OpGreaterEqual:
		final = jump(unix.BPF_JGE, lo, 0, rest)
	case specs.OpLessThan:
		final = jump(unix.BPF_JGE, lo, rest, 0)
	case specs.OpLessEqual:
		final = jump(unix.BPF_JGT, lo, rest, 0)
	}
	return []unix.SockFilter{loadHigh, order, differ, loadLow, final}
}

// seccompHalves returns where the two halves of an argument are; all machines that we have tables for are little-endian.
func seccompHalves(index uint) (low, high uint32) {
	low = seccompArguments + 8*uint32(index)
	return low, low + 4
}
