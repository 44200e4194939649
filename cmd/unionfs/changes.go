package main

import "github.com/urfave/cli/v2"

func diffCommand() *cli.Command {
	return &cli.Command{Name: "diff"}
}

func applyCommand() *cli.Command {
	return &cli.Command{Name: "apply"}
}
