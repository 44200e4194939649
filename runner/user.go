package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// argvUser is the argv[0] of the process that looks up a user in a root directory; see initConfig.fixedUser.
const argvUser = "unionfs-user"

// maxAccountsFile bounds what is read of an image's /etc/passwd and /etc/group.
const maxAccountsFile = 8 << 20

// account is the user that a command runs as.
type account struct {
	specs.User
	home string
}

// numericUser parses UID:GID. A UID alone is not enough: its group is looked up in /etc/passwd.
func numericUser(s string) (specs.User, bool) {
	u, g, _ := strings.Cut(s, ":")
	uid, uerr := strconv.ParseUint(u, 10, 31)
	gid, gerr := strconv.ParseUint(g, 10, 31)
	return specs.User{UID: uint32(uid), GID: uint32(gid)}, uerr == nil && gerr == nil
}

// lookupUser finds the user that the container runs as in the accounts of the root directory that rootFD is open on. If
// name (USER[:GROUP]) is empty, given holds, and only the home directory is looked up.
func lookupUser(rootFD int, name string, given specs.User) (*account, error) {
	spec := name
	if spec == "" {
		spec = fmt.Sprintf("%d:%d", given.UID, given.GID)
	}
	passwd, err := readAccounts(rootFD, "/etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := readAccounts(rootFD, "/etc/group")
	if err != nil {
		return nil, err
	}
	found, err := user.GetExecUser(spec, nil, strings.NewReader(passwd), strings.NewReader(group))
	if err != nil {
		return nil, fmt.Errorf("looking up the user %q in the container's /etc/passwd and /etc/group: %w", spec, err)
	}
	a := &account{User: given, home: found.Home}
	if a.home == "" {
		a.home = "/"
	}
	if name == "" {
		return a, nil
	}
	a.UID, a.GID = uint32(found.Uid), uint32(found.Gid)
	for _, g := range found.Sgids {
		a.AdditionalGids = append(a.AdditionalGids, uint32(g))
	}
	return a, nil
}

// addGroups makes the user a member of the groups that were asked for besides.
func (p *containerInit) addGroups(rootFD int, who *account) error {
	asked := p.cfg.Spec.Annotations[AnnotationGroups]
	if asked == "" || asked == KeepGroups {
		return nil
	}
	if p.cfg.Fixed {
		return errors.New("groups can't be added: this container has the one ID of its user; subordinate IDs in /etc/subuid and /etc/subgid, and the package uidmap, give it others")
	}
	group, err := readAccounts(rootFD, "/etc/group")
	if err != nil {
		return err
	}
	gids, err := user.GetAdditionalGroups(strings.Split(asked, ","), strings.NewReader(group))
	if err != nil {
		return fmt.Errorf("looking up the groups %s in the container's /etc/group: %w", asked, err)
	}
	slices.Sort(gids)
	for _, g := range gids {
		if !slices.Contains(who.AdditionalGids, uint32(g)) {
			who.AdditionalGids = append(who.AdditionalGids, uint32(g))
		}
	}
	return nil
}

// readAccounts reads a file of a root directory that may be hostile: a link that leads out, a pipe, a device or an
// endless file. One that is missing is empty.
func readAccounts(rootFD int, name string) (string, error) {
	fd, err := openInRoot(rootFD, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("opening %s in the container: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("%s in the container is not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxAccountsFile+1))
	if err != nil {
		return "", fmt.Errorf("reading %s in the container: %w", name, err)
	}
	if len(data) > maxAccountsFile {
		return "", fmt.Errorf("%s in the container is larger than %d MiB", name, maxAccountsFile>>20)
	}
	return string(data), nil
}

// runUserLookup prints the JSON of the user args[1] in the root directory args[0].
func runUserLookup(args []string) int {
	fail := func(err error) int {
		fmt.Fprint(os.Stderr, err)
		return exitOurs
	}
	if len(args) != 2 {
		return exitOurs
	}
	fd, err := unix.Open(args[0], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(fmt.Errorf("opening %s: %w", args[0], err))
	}
	a, err := lookupUser(fd, args[1], specs.User{})
	if err != nil {
		return fail(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(a.User); err != nil {
		return fail(err)
	}
	return 0
}
