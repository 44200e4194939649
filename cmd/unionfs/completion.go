package main

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/urfave/cli/v2"

	"unionfs/internal/cmdline"
	"unionfs/layerstore"
	"unionfs/network"
	"unionfs/runner"
	"unionfs/volumes"
)

// What the shells source. They ask completeVerb for the words.
var (
	//go:embed completion/bash.sh
	bashCompletion string
	//go:embed completion/zsh.sh
	zshCompletion string
	//go:embed completion/fish.fish
	fishCompletion string
)

// completeVerb is the hidden verb that prints what the last of its arguments may become: a line for each word, with what it
// is behind a tab, and ":files" if it may be a file too.
const completeVerb = "__complete"

func completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print what makes a shell complete command lines",
		ArgsUsage: "SHELL",
		Description: `Prints a script for bash, zsh or fish, which completes verbs, flags, and the names of images, containers and volumes.

Examples:
   source <(unionfs completion bash)
   unionfs completion zsh >"${fpath[1]}/_unionfs"
   unionfs completion fish >~/.config/fish/completions/unionfs.fish`,
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "SHELL: bash, zsh or fish"); err != nil {
				return err
			}
			script, known := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[c.Args().First()]
			if !known {
				return usageError("completion: unknown shell %q; known are bash, zsh and fish", c.Args().First())
			}
			_, err := fmt.Fprint(c.App.Writer, script)
			return err
		},
	}
}

func completeCommand() *cli.Command {
	return &cli.Command{
		Name:            completeVerb,
		Usage:           "print what the last of the words may become",
		Description:     "Example:\n   unionfs " + completeVerb + " run --rm alp",
		Hidden:          true,
		SkipFlagParsing: true,
		HideHelp:        true,
		Action: func(c *cli.Context) error {
			words := c.Args().Slice()
			if len(words) == 0 {
				words = []string{""}
			}
			if len(words) > 1 && words[0] == "bench" {
				return completeBench(c, words[1:])
			}
			words = ungroup(append([]string{c.App.Name}, words...))[1:]
			completion := cmdline.Completion{App: c.App, EndsAtFirst: endsFlags, Names: func(kind string) ([]cmdline.Candidate, bool) {
				return namesOf(kind, rootIn(words, c.String("root")))
			}}
			return completion.Print(c.App.Writer, words)
		},
	}
}

func completeBench(c *cli.Context, words []string) error {
	program, err := findBench()
	if err != nil {
		return err
	}
	command := exec.Command(program, append([]string{completeVerb}, words...)...)
	command.Stdout = c.App.Writer
	return command.Run()
}

// manCommand writes the manual pages, for "make man".
func manCommand() *cli.Command {
	return &cli.Command{
		Name:        "man",
		Usage:       "write manual pages",
		ArgsUsage:   "DIR",
		Description: "Writes a manual page for each verb to DIR.\n\nExample:\n   unionfs man share/man/man1",
		Hidden:      true,
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "DIR"); err != nil {
				return err
			}
			return cmdline.WriteMan(c.App, c.Args().First())
		},
	}
}

// rootIn returns the --root of a command line.
func rootIn(words []string, root string) string {
	for i, word := range words[:len(words)-1] {
		if value, has := strings.CutPrefix(word, "--root="); has {
			root = value
		} else if word == "--root" {
			root = words[i+1]
		}
	}
	return root
}

// namesOf lists what there is of a kind. Who can't read a store has no names there.
func namesOf(kind, root string) (names []cmdline.Candidate, known bool) {
	if _, err := os.Stat(root); err != nil && kind != "SHELL" {
		root = "" // don't make one
	}
	switch kind {
	case "SHELL":
		return []cmdline.Candidate{{Value: "bash"}, {Value: "zsh"}, {Value: "fish"}}, true
	case "IMAGE":
		names = imageNames(root)
	case "CONTAINER":
		names = containerNames(root)
	case "VOLUME":
		names = volumeNames(root)
	case "NETWORK":
		names = networkNames(root)
	default:
		return nil, false
	}
	return names, true
}

func imageNames(root string) []cmdline.Candidate {
	if root == "" {
		return nil
	}
	store, err := layerstore.Open(root)
	if err != nil {
		return nil
	}
	images, err := store.Images()
	if err != nil {
		return nil
	}
	var names []cmdline.Candidate
	for _, row := range imageRows(images) {
		if row.Repository != "<none>" {
			names = append(names, cmdline.Candidate{Value: row.Repository + ":" + row.Tag, About: shortID(row.ID)})
		}
	}
	return names
}

func containerNames(root string) []cmdline.Candidate {
	if root == "" {
		return nil
	}
	rows, err := containerRows(root, true, func(*runner.Container, *runner.Status) bool { return true })
	if err != nil {
		return nil
	}
	var names []cmdline.Candidate
	for _, row := range rows {
		names = append(names, cmdline.Candidate{Value: row.Names, About: row.Image + ", " + row.Status})
	}
	return names
}

func volumeNames(root string) []cmdline.Candidate {
	all, err := volumes.OpenStore(root).List()
	if root == "" || err != nil {
		return nil
	}
	var names []cmdline.Candidate
	for _, volume := range all {
		names = append(names, cmdline.Candidate{Value: volume.Name, About: "volume of " + ago(volume.CreatedAt)})
	}
	return names
}

func networkNames(root string) []cmdline.Candidate {
	all, err := network.OpenStore(root).List()
	if root == "" || err != nil {
		return nil
	}
	var names []cmdline.Candidate
	for _, one := range all {
		names = append(names, cmdline.Candidate{Value: one.Name, About: "network"})
	}
	return names
}
