package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"unionfs/layerstore"
)

func loginCommand() *cli.Command {
	return &cli.Command{
		Name:      "login",
		Usage:     "keep the credentials for a registry",
		ArgsUsage: "[SERVER]",
		Description: `Asks the registry, Docker Hub if none is named, whether it accepts a user name and password, and keeps them in Docker's
config.json or with the credential helper that this names. Asks for what isn't given.

Examples:
   unionfs login registry.example:5000
   unionfs login -u jo --password-stdin registry.example < password`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "username", Aliases: []string{"u"}, Usage: "log in as `USER`"},
			&cli.StringFlag{Name: "password", Aliases: []string{"p"}, Usage: "`PASSWORD` or token; other users of this machine can see it while the command runs"},
			&cli.BoolFlag{Name: "password-stdin", Usage: "read the password from standard input"},
			insecureFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 1, "SERVER"); err != nil {
				return err
			}
			user, password, err := credentials(c)
			if err != nil {
				return err
			}
			if _, err := layerstore.Login(c.Context, c.Args().First(), user, password, c.Bool("insecure")); err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.App.Writer, "Login Succeeded")
			return err
		},
	}
}

// credentials returns what the flags say, and asks for the rest.
func credentials(c *cli.Context) (user, password string, err error) {
	user, password = c.String("username"), c.String("password")
	if c.Bool("password-stdin") {
		if password != "" || user == "" {
			return "", "", usageError("login: --password-stdin goes with --username and without --password")
		}
		const most = 1 << 20
		b, err := io.ReadAll(io.LimitReader(os.Stdin, most))
		if err != nil {
			return "", "", fmt.Errorf("reading the password: %w", err)
		}
		return user, strings.TrimRight(string(b), "\r\n"), nil
	}
	if user != "" && password != "" {
		return user, password, nil
	}
	terminal := int(os.Stdin.Fd())
	if !term.IsTerminal(terminal) {
		return "", "", usageError("login: there is no terminal to ask on: give --username and --password-stdin")
	}
	if user == "" {
		fmt.Fprint(c.App.ErrWriter, "Username: ")
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil {
			return "", "", fmt.Errorf("reading the user name: %w", err)
		}
		user = strings.TrimSpace(line)
	}
	if password == "" {
		fmt.Fprint(c.App.ErrWriter, "Password: ")
		b, err := term.ReadPassword(terminal)
		fmt.Fprintln(c.App.ErrWriter)
		if err != nil {
			return "", "", fmt.Errorf("reading the password: %w", err)
		}
		password = string(b)
	}
	return user, password, nil
}

func logoutCommand() *cli.Command {
	return &cli.Command{
		Name:      "logout",
		Usage:     "forget the credentials for a registry",
		ArgsUsage: "[SERVER]",
		Description: `Forgets what "unionfs login" or "docker login" keeps for the registry, Docker Hub if none is named.

Example:
   unionfs logout registry.example:5000`,
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 1, "SERVER"); err != nil {
				return err
			}
			err := layerstore.Logout(c.Args().First())
			if errors.Is(err, layerstore.ErrNotLoggedIn) {
				fmt.Fprintf(c.App.ErrWriter, "unionfs: %v\n", err)
				return nil // as Docker does
			}
			return err
		},
	}
}
