package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

func whichCommand() *cli.Command {
	return &cli.Command{
		Name:      "which",
		Usage:     "say which branch or layer a file of a mount comes from",
		ArgsUsage: "PATH...",
		Description: `Says for each path in a mounted union which branch or layer provides it, and which it hides or, for a
directory, is merged with. The same is in the extended attribute user.unionfs.branch of every file and directory.

Examples:
   unionfs which /mnt/etc/passwd
   unionfs which --format json /mnt/usr /mnt/usr/bin/env`,
		Flags: []cli.Flag{formatFlag()},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "PATH..."); err != nil {
				return err
			}
			var rows []whichRow
			var failed error
			for _, path := range c.Args().Slice() {
				row, err := which(path)
				if err != nil {
					failed = errors.Join(failed, err)
					continue
				}
				rows = append(rows, row)
			}
			if len(rows) == 0 {
				return failed
			}
			return errors.Join(printRows(c, []string{"PATH", "FROM", "OVER"}, rows), failed)
		},
	}
}

// whichRow is a line of "which".
type whichRow struct {
	Path string
	From string   // the branch or layer that provides it
	Over []string // those that it hides or is merged with, from the top down
}

func (r whichRow) columns() []string { return []string{r.Path, r.From, strings.Join(r.Over, " ")} }

func which(path string) (whichRow, error) {
	value := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(path, cow.BranchXattr, value)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
		return whichRow{}, fmt.Errorf("%s: not a file or directory of a mounted union (of links and devices the kernel doesn't let it be asked)", path)
	case err != nil:
		return whichRow{}, fmt.Errorf("%s: %w", path, err)
	}
	from := strings.Split(string(value[:n]), "\n")
	return whichRow{Path: path, From: from[0], Over: from[1:]}, nil
}
