package main

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"unionfs/internal/cmdline"
)

func TestOurFlags(t *testing.T) {
	tests := map[string]string{
		// Flags may stand after arguments, and any of a flag's names is its first.
		"unionfs umount /mnt -l":                        "unionfs umount --lazy /mnt",
		"unionfs mount /mnt -l a --lower b -f":          "unionfs mount --lower a --lower b --foreground /mnt",
		"unionfs --root /x diff c --format json":        "unionfs --root /x diff --format json c",
		"unionfs --root=/x diff c --format=json":        "unionfs --root=/x diff --format=json c",
		"unionfs rm -f -- -f":                           "unionfs rm --force -- -f",
		"unionfs images -q":                             "unionfs images --quiet",
		"unionfs import - name":                         "unionfs import - name",
		"unionfs ps -aq":                                "unionfs ps --all --quiet",
		"unionfs mount -l":                              "unionfs mount --lower",
		"unionfs --version":                             "unionfs --version",
		"unionfs nowhere -x y":                          "unionfs nowhere -x y",
		"unionfs run -e A=1 --env B=2 -it image ls -e":  "unionfs run --env A=1 --env B=2 --interactive --tty image ls -e",
		"unionfs run --rm -v /a:/b image -v x":          "unionfs run --rm --volume /a:/b image -v x",
		"unionfs try -w /tmp ls -w":                     "unionfs try --workdir /tmp ls -w",
		"unionfs try -- ls -w":                          "unionfs try -- ls -w",
		"unionfs run --name -it image":                  "unionfs run --name -it image",
		"unionfs run -h box --rm image -h":              "unionfs run --hostname box --rm image -h",
		"unionfs run -itu root -p80:80 -e=A=1 image":    "unionfs run --interactive --tty --user root --publish=80:80 --env=A=1 image",
		"unionfs run -i=false -xi image":                "unionfs run --interactive=false -xi image",
		"unionfs logs -fn5 web":                         "unionfs logs --follow --tail=5 web",
		"unionfs ps -h":                                 "unionfs ps --help",
		"unionfs -h":                                    "unionfs --help",
		"unionfs top web -o pid":                        "unionfs top web -o pid",
		"unionfs volume create data -o type=none":       "unionfs volume create --opt type=none data",
		"unionfs run --net=host image sh -c --network=": "unionfs run --network=host image sh -c --network=",
	}
	for line, want := range tests {
		args := strings.Fields(line)
		for _, app := range []*cli.App{newApp(io.Discard, io.Discard), appFor(args, io.Discard, io.Discard)} {
			if got := strings.Join(cmdline.Arrange(app, args, endsFlags), " "); got != want {
				t.Errorf("%s, with %d verbs\n got %s\nwant %s", line, len(app.Commands), got, want)
			}
		}
	}
}

func TestUngroup(t *testing.T) {
	for line, want := range map[string]string{
		"unionfs container ls -a":             "unionfs ps -a",
		"unionfs --root /x image rm image ls": "unionfs --root /x rmi image ls",
		"unionfs --root=/x system df":         "unionfs --root=/x df",
		"unionfs container prune -f":          "unionfs container prune -f",
		"unionfs container":                   "unionfs container",
		"unionfs --root container ls":         "unionfs --root container ls",
		"unionfs image --help":                "unionfs image --help",
		"unionfs run image ls":                "unionfs run image ls",
		"unionfs help":                        "unionfs --help",
		"unionfs help volume create":          "unionfs volume create --help",
		"unionfs --root /x help image ls":     "unionfs --root /x images --help",
		"unionfs":                             "unionfs",
	} {
		if got := strings.Join(ungroup(strings.Fields(line)), " "); got != want {
			t.Errorf("%s\n got %s\nwant %s", line, got, want)
		}
	}
	for _, g := range groups() {
		for _, other := range g.others {
			if _, is := verbNamed(other.verb); !is {
				t.Errorf("%s %s is %s, which isn't there", g.name, other.name, other.verb)
			}
		}
	}
}

// TestVerbs holds the names by which verbs are found against those that their commands have.
func TestVerbs(t *testing.T) {
	for _, v := range verbs() {
		if command := v.command(); command.Name != v.name || !slices.Equal(command.Aliases, v.aliases) {
			t.Errorf("%s %q makes the command %s %q", v.name, v.aliases, command.Name, command.Aliases)
		}
	}
	for line, want := range map[string]int{
		"unionfs run x": 1, "unionfs --root /x run x": 1, "unionfs --root=/x unmount x": 1,
		"unionfs --help run": len(verbs()), "unionfs nowhere": len(verbs()), "unionfs": len(verbs()), "unionfs --root": len(verbs()),
		"unionfs man x": len(verbs()),
	} {
		if got := len(appFor(strings.Fields(line), io.Discard, io.Discard).Commands); got != want {
			t.Errorf("%s has %d verbs, want %d", line, got, want)
		}
	}
}

func TestEveryCommandIsDocumented(t *testing.T) {
	for _, command := range newApp(io.Discard, io.Discard).Commands {
		if command.Usage == "" || !strings.Contains(command.Description, "Example") {
			t.Errorf("%s has no usage or no example", command.Name)
		}
		for line := range strings.Lines(command.Description) {
			if len(line) > 121 {
				t.Errorf("%s: a line of its description has %d characters", command.Name, len(line))
			}
		}
		for _, flag := range command.Flags {
			if text := cmdline.DescribeFlag(flag); !strings.Contains(text, "\t") || strings.Contains(text, "`") {
				t.Errorf("%s: %q", command.Name, text)
			}
			for _, name := range flag.Names() {
				if len(name) == 1 && flag.Names()[0] == name {
					t.Errorf("%s: flag -%s has no long name", command.Name, name)
				}
			}
		}
	}
}

func TestDescribeFlag(t *testing.T) {
	tests := []struct {
		flag cli.Flag
		want string
	}{
		{&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all of them"}, "-a, --all\tall of them"},
		{&cli.StringFlag{Name: "net", Usage: "`MODE` of it", Value: "none"}, "--net MODE\tMODE of it (default: none)"},
		{&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set `K=V`"}, "-e, --env K=V\tset K=V"},
	}
	for _, test := range tests {
		if got := cmdline.DescribeFlag(test.flag); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestHint(t *testing.T) {
	app := newApp(io.Discard, io.Discard)
	for typed, want := range map[string]string{"imges": "images", "munt": "mount", "dif": "diff", "frobnicate": ""} {
		got := cmdline.Hint(app, typed)
		if want == "" && got != "" || want != "" && !strings.Contains(got, `"`+want+`"`) {
			t.Errorf("%s: %q, want %q", typed, got, want)
		}
	}
}

// TestHints shows what a typo in a verb's verb, and in a flag, is answered with.
func TestHints(t *testing.T) {
	for line, want := range map[string]string{
		"volume lss":        `unknown command "volume lss"; see unionfs volume --help (did you mean "ls"?)`,
		"container frob":    `unknown command "container frob"; see unionfs container --help`,
		"ps --al":           `there is no flag --al; see unionfs ps --help (did you mean "--all"?)`,
		"run --link a:b x":  "--link is not supported: use a network",
		"run --nme x image": `there is no flag --nme; see unionfs run --help (did you mean "--name"?)`,
		"images --frob":     "see unionfs images --help\n",
		"imges":             `(did you mean "images"?)`,
	} {
		var errs strings.Builder
		if code := run(append([]string{"unionfs"}, strings.Fields(line)...), io.Discard, &errs); code != exitUsage && code != exitRunFailed || !strings.Contains(errs.String(), want) {
			t.Errorf("%s: exit code %d, %q; want %q", line, code, errs.String(), want)
		}
	}
}

func TestImageRows(t *testing.T) {
	row := imageRow{Repository: "a", Tag: "b", ID: "0123456789ab", CreatedSince: "unknown", Size: 1500}
	want := []string{"a", "b", "0123456789ab", "unknown", "1.5kB"}
	if got := row.columns(); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
