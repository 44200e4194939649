package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// verb is one of the program's verbs: what it is called, and how its part of the command line is made.
type verb struct {
	name     string
	command  func() *cli.Command
	aliases  []string
	needsAll bool // it works on the whole command line
}

// verbs are all of them, in the order of the help.
func verbs() []verb {
	return []verb{
		{name: "try", command: tryCommand},
		{name: "run", command: runCommand},
		{name: "ps", command: psCommand},
		{name: "diff", command: diffCommand},
		{name: "apply", command: applyCommand},
		{name: "rm", command: rmCommand},
		{name: "which", command: whichCommand},
		{name: "create", command: createCommand},
		{name: "start", command: startCommand},
		{name: "stop", command: stopCommand},
		{name: "restart", command: restartCommand},
		{name: "kill", command: killCommand},
		{name: "wait", command: waitCommand},
		{name: "rename", command: renameCommand},
		{name: "pause", command: pauseCommand},
		{name: "unpause", command: unpauseCommand},
		{name: "logs", command: logsCommand},
		{name: "exec", command: execCommand},
		{name: "cp", command: cpCommand},
		{name: "attach", command: attachCommand},
		{name: "stats", command: statsCommand},
		{name: "update", command: updateCommand},
		{name: "top", command: topCommand},
		{name: "events", command: eventsCommand},
		{name: "container", command: containerCommand},
		{name: "volume", command: volumeCommand},
		{name: "port", command: portCommand},
		{name: "network", command: networkCommand},
		{name: "image", command: imageCommand},
		{name: "images", command: imagesCommand},
		{name: "pull", command: pullCommand},
		{name: "import", command: importCommand},
		{name: "load", command: loadCommand},
		{name: "save", command: saveCommand},
		{name: "rmi", command: rmiCommand},
		{name: "tag", command: tagCommand},
		{name: "inspect", command: inspectCommand},
		{name: "history", command: historyCommand},
		{name: "prune", command: pruneCommand},
		{name: "df", command: dfCommand},
		{name: "verify", command: verifyCommand},
		{name: "commit", command: commitCommand},
		{name: "export", command: exportCommand},
		{name: "push", command: pushCommand},
		{name: "copy", command: copyCommand},
		{name: "login", command: loginCommand},
		{name: "logout", command: logoutCommand},
		{name: "mount", command: mountCommand},
		{name: "umount", command: umountCommand, aliases: []string{"unmount"}},
		{name: "runtime", command: runtimeCommand},
		{name: "upgrade", command: upgradeCommand},
		{name: "bench", command: benchCommand},
		{name: "system", command: systemCommand},
		{name: "info", command: infoCommand},
		{name: "version", command: versionCommand},
		{name: holderName, command: holderCommand},
		{name: sweepName, command: sweepCommand},
		{name: "completion", command: completionCommand, needsAll: true},
		{name: completeVerb, command: completeCommand, needsAll: true},
		{name: "man", command: manCommand, needsAll: true},
	}
}

// verbNamed finds a verb.
func verbNamed(name string) (verb, bool) {
	all := verbs()
	i := slices.IndexFunc(all, func(v verb) bool { return v.name == name || slices.Contains(v.aliases, name) })
	if i < 0 {
		return verb{}, false
	}
	return all[i], true
}

// verbIn finds the verb of a command line, behind no other flag than --root.
func verbIn(args []string) (verb, bool) {
	if at := verbAt(args); at >= 0 {
		return verbNamed(args[at])
	}
	return verb{}, false
}

// verbAt is where the verb of a command line stands, behind no other flag than --root; -1 if it doesn't.
func verbAt(args []string) int {
	for i := 1; i < len(args); i++ {
		switch {
		case args[i] == "--root":
			i++
		case strings.HasPrefix(args[i], "--root="):
		default:
			return i
		}
	}
	return -1
}
