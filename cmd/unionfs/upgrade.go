package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"unionfs/holder"
)

func upgradeCommand() *cli.Command {
	return &cli.Command{
		Name:      "upgrade",
		Usage:     "let this version of the program serve mounts that an older one serves",
		UsageText: "unionfs upgrade MOUNT...\nunionfs upgrade --all",
		Description: `Replaces the server of each MOUNT by this program, with no interruption for who uses the mount: files stay open, and
nobody sees an error. If this program can't take a mount over, the server that it has goes on, and the command says why.
Mounts in the foreground have no holder and can't be upgraded.

Examples:
   unionfs upgrade /mnt
   unionfs upgrade --all`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all mounts of this user, or if root of everybody, that were made in this network namespace"},
		},
		Action: func(c *cli.Context) error {
			names := map[string]string{} // socket → what the user calls it
			var sockets []string
			switch {
			case c.Bool("all") && c.NArg() > 0:
				return usageError("upgrade: --all and MOUNT exclude each other")
			case c.Bool("all"):
				var err error
				if sockets, err = allHolders(); err != nil {
					return err
				}
			default:
				if err := arguments(c, 1, -1, "MOUNT..."); err != nil {
					return err
				}
				for _, target := range c.Args().Slice() {
					socket, err := holder.Socket(target)
					if err != nil {
						return fmt.Errorf("upgrading %s: %w", target, err)
					}
					names[socket] = target
					sockets = append(sockets, socket)
				}
			}
			program, err := os.Open("/proc/self/exe")
			if err != nil {
				return err
			}
			defer program.Close()
			var failed []error
			for _, socket := range sockets {
				name := names[socket]
				if name == "" {
					name = "the mount " + strings.TrimPrefix(socket, holder.Sockets)
				}
				err := holder.Upgrade(socket, program)
				if c.Bool("all") && errors.Is(err, holder.ErrNotYours) {
					continue
				}
				if err != nil {
					failed = append(failed, fmt.Errorf("upgrading %s: %w", name, err))
				}
			}
			return errors.Join(failed...)
		},
	}
}

// allHolders lists the sockets of all holders (man 5 proc_net: the name is the last column).
func allHolders() ([]string, error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var sockets []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if name := fields[len(fields)-1]; strings.HasPrefix(name, holder.Sockets) && !slices.Contains(sockets, name) {
			sockets = append(sockets, name)
		}
	}
	return sockets, nil
}
