package cmdline

import (
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Candidate is a word that may be meant, and what it is.
type Candidate struct{ Value, About string }

// Completion completes a command line.
type Completion struct {
	App         *cli.App
	EndsAtFirst func(verb string) bool // as of Arrange
	// Names lists what exists of a kind that a verb's usage names: CONTAINER, IMAGE, VOLUME, NETWORK or SHELL; known is false
	// for all others.
	Names func(kind string) (names []Candidate, known bool)
}

// Complete returns what the last of the words may become; it may be empty. files says that it may be a file's name too.
func (c *Completion) Complete(words []string) (found []Candidate, files bool) {
	at := place{commands: c.App.Commands, flags: c.App.Flags}
	typed := words[len(words)-1]
	for _, word := range words[:len(words)-1] {
		at.pass(word, c.EndsAtFirst)
	}
	name, value, hasValue := strings.Cut(typed, "=")
	switch {
	case at.value != nil:
		found, files = c.values(at.value)
	case at.theirs:
		files = true
	case hasValue && isFlag(name) && flagOf(at.flags, name) != nil:
		found, files = c.values(flagOf(at.flags, name))
		for i := range found {
			found[i].Value = name + "=" + found[i].Value
		}
		files = files && value == "" // a shell can't complete a file's name behind a flag's
	case strings.HasPrefix(typed, "-"):
		found = flagCandidates(at.flags)
	case at.arguments == 0 && len(at.commands) > 0:
		for _, command := range at.commands {
			if !command.Hidden {
				found = append(found, Candidate{command.Name, command.Usage})
			}
		}
	case at.command != nil:
		found, files = c.argument(at.command, at.arguments)
	}
	return slices.DeleteFunc(found, func(one Candidate) bool { return !strings.HasPrefix(one.Value, typed) }), files
}

// place is where in a command line a word stands.
type place struct {
	commands  []*cli.Command // that may follow
	flags     []cli.Flag     // that may follow
	command   *cli.Command
	path      string   // what it is called, with the verb that it is one of
	arguments int      // that stood before
	value     cli.Flag // whose value follows, or nil
	theirs    bool     // what follows belongs to a command of the user's
	noFlags   bool
}

// pass goes behind a word.
func (p *place) pass(word string, endsAtFirst func(string) bool) {
	switch {
	case p.value != nil:
		p.value = nil
	case word == "--" && !p.noFlags:
		p.noFlags, p.flags = true, nil
	case isFlag(word) && !p.noFlags:
		if spelled, takesNext := spell(p.flags, word); takesNext {
			p.value = flagOf(p.flags, spelled[len(spelled)-1])
		}
	default:
		for _, command := range p.commands {
			if p.arguments == 0 && command.HasName(word) {
				p.path = strings.TrimPrefix(p.path+" "+command.Name, " ")
				p.command, p.commands, p.flags = command, command.Subcommands, command.Flags
				return
			}
		}
		p.arguments++
		if p.command != nil && endsAtFirst(p.path) {
			// "exec CONTAINER COMMAND" has one argument of ours, and "try COMMAND" none.
			p.noFlags, p.theirs = true, true
		}
	}
}

// flagOf finds a flag by any of its names, with or without dashes.
func flagOf(flags []cli.Flag, arg string) cli.Flag {
	name := strings.TrimLeft(arg, "-")
	for _, flag := range flags {
		if slices.Contains(flag.Names(), name) {
			return flag
		}
	}
	return nil
}

// flagCandidates lists the flags by their long names.
func flagCandidates(flags []cli.Flag) []Candidate {
	candidates := []Candidate{{"--help", "show help"}}
	for _, flag := range flags {
		doc, ok := flag.(cli.DocGenerationFlag)
		if !ok {
			continue
		}
		for _, name := range flag.Names() {
			if len(name) > 1 && name != "help" {
				candidates = append(candidates, Candidate{"--" + name, strings.ReplaceAll(doc.GetUsage(), "`", "")})
			}
		}
	}
	return candidates
}

// values lists what a flag may be set to.
func (c *Completion) values(flag cli.Flag) (found []Candidate, files bool) {
	words := func(words ...string) []Candidate {
		for _, word := range words {
			found = append(found, Candidate{Value: word})
		}
		return found
	}
	kind := func(name string) []Candidate {
		names, _ := c.Names(name)
		return names
	}
	switch flag.Names()[0] {
	case "format":
		return words("table", "json"), false
	case "network", "net":
		return slices.Concat(words("none", "host"), kind("NETWORK")), false
	case "volume":
		return kind("VOLUME"), true
	case "volumes-from":
		return kind("CONTAINER"), false
	case "userns":
		return words("host", "keep-id"), false
	case "restart":
		return words("no", "always", "on-failure", "unless-stopped"), false
	case "security-opt":
		return words("seccomp=unconfined", "no-new-privileges"), false
	case "platform":
		return words("linux/amd64", "linux/arm64"), false
	}
	return nil, true
}

// argument lists what may stand as a command's n-th argument, by the words in its usage.
func (c *Completion) argument(command *cli.Command, n int) (found []Candidate, files bool) {
	for _, kind := range argumentKinds(command, n) {
		suffix := ""
		if before, isPath := strings.CutSuffix(kind, ":PATH"); isPath {
			kind, suffix, files = before, ":", true
		}
		names, known := c.Names(kind)
		for _, name := range names {
			found = append(found, Candidate{name.Value + suffix, name.About})
		}
		if !known && isFileKind(kind) {
			files = true
		}
	}
	return found, files
}

// isFileKind reports whether a usage's word stands for a file, or for a command, which may be one.
func isFileKind(kind string) bool {
	return slices.Contains([]string{"DIR", "PATH", "FILE", "TARGET", "MOUNT", "UPPER", "COMMAND"}, kind) || strings.Contains(kind, ".")
}

// argumentKinds reads a usage such as "CONTAINER NAME", "CONTAINER|IMAGE..." or "IMAGE IMAGE | MOUNT".
func argumentKinds(command *cli.Command, n int) []string {
	usage := command.ArgsUsage
	if usage == "" {
		// "unionfs run [options] IMAGE [COMMAND [ARG...]]"
		usage, _, _ = strings.Cut(command.UsageText, "\n")
		if _, after, has := strings.Cut(usage, "[options] "); has {
			usage = after
		}
	}
	var kinds []string
	for variant := range strings.SplitSeq(usage, " | ") {
		words := slices.DeleteFunc(strings.Fields(variant), func(word string) bool { return strings.HasPrefix(strings.Trim(word, "["), "-") })
		if len(words) == 0 {
			continue
		}
		at := n
		if last := len(words) - 1; at > last {
			if !strings.Contains(words[last], "...") {
				continue
			}
			at = last
		}
		word := strings.ReplaceAll(words[at], "[:TAG]", "")
		for kind := range strings.SplitSeq(word, "|") {
			kinds = append(kinds, strings.Trim(kind, "[]."))
		}
	}
	return kinds
}

// Print writes what the last of the words may become, for a shell's script to read: a line for each word, with what it is
// behind a tab, and ":files" if it may be a file's name too.
func (c *Completion) Print(w io.Writer, words []string) error {
	found, files := c.Complete(words)
	var out strings.Builder
	for _, one := range found {
		out.WriteString(one.Value + "\t" + one.About + "\n")
	}
	if files {
		out.WriteString(":files\n")
	}
	_, err := io.WriteString(w, out.String())
	return err
}
