package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The inner network's way out is the interface tap0, with addresses as slirp4netns has them; but for those of IPv6, where fd00::/64 is
// what somebody's own network may well have.
const (
	uplinkInterface = "tap0"
	uplinkAddress   = "10.0.2.100/24"
	uplinkSubnet6   = "fd5a:94ef:e40c::/64"

	// UplinkMTU is the largest packet in bytes, without the frame around it.
	UplinkMTU = 1500
)

// UplinkGateway is the address that the inner network sends to what goes out.
func UplinkGateway() netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 2, 2}) }

// UplinkGateway6 is that of IPv6, and UplinkAddress6 that of tap0.
func UplinkGateway6() netip.Addr { return netip.MustParsePrefix(uplinkSubnet6).Addr().Next() }
func UplinkAddress6() netip.Addr { return UplinkGateway6().Next() }

// UplinkGatewayMAC and UplinkMAC are the hardware addresses of the two ends. With IPv6 these are told and not asked for: what asks for them
// goes to a group of addresses, which the switch between the two doesn't pass on.
func UplinkGatewayMAC() net.HardwareAddr { return net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd} }
func UplinkMAC() net.HardwareAddr        { return net.HardwareAddr{0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xde} }

// UplinkVariable is the environment variable that chooses the program which is the way out of an ordinary user's networks:
// builtin, slirp4netns, pasta or none.
const UplinkVariable = "UNIONFS_UPLINK"

// Uplink makes the way out of the inner network namespace. It takes our own program, which is found beside program, or
// slirp4netns or pasta where they are installed; whichever it is ends with this process.
func Uplink(inner *os.File, program string) error {
	kinds := map[string]func(*os.File, string) error{"builtin": builtinUplink, "slirp4netns": slirpUplink, "pasta": pastaUplink}
	want := os.Getenv(UplinkVariable)
	if want == "none" {
		return nil
	}
	if want != "" {
		start := kinds[want]
		if start == nil {
			return fmt.Errorf("$%s is %q; known are builtin, slirp4netns, pasta and none", UplinkVariable, want)
		}
		return start(inner, program)
	}
	var failed []error
	for _, kind := range []string{"builtin", "slirp4netns", "pasta"} {
		err := kinds[kind](inner, program)
		if err == nil {
			return nil
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// builtinUplink makes the interface, and hands it to our own program.
func builtinUplink(inner *os.File, program string) error {
	path := filepath.Join(filepath.Dir(program), "unionfs-uplink")
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%s is missing: install it with unionfs", path)
	}
	var tap *os.File
	err := inNamespace(inner, func() (err error) {
		tap, err = openTap()
		return err
	})
	if err != nil {
		return err
	}
	defer tap.Close()
	if err := setUpTap(inner); err != nil {
		return fmt.Errorf("setting up %s: %w", uplinkInterface, err)
	}
	return startUplink(exec.Command(path), tap)
}

func openTap() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EACCES) {
		return nil, errors.New("/dev/net/tun may not be opened: as root, run \"chmod 666 /dev/net/tun\"")
	}
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun: %w", err)
	}
	request, err := unix.NewIfreq(uplinkInterface)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("making %s: %w", uplinkInterface, err)
	}
	return os.NewFile(uintptr(fd), uplinkInterface), nil
}

func setUpTap(inner *os.File) error {
	h, err := netlinkIn(inner)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(uplinkInterface)
	if err != nil {
		return err
	}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(uplinkAddress))}); err != nil {
		return err
	}
	if err := h.LinkSetHardwareAddr(link, UplinkMAC()); err != nil {
		return err
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	if err := h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: UplinkGateway().AsSlice()}); err != nil {
		return err
	}
	return setUpTap6(inner, h, link)
}

func slirpUplink(inner *os.File, _ string) error {
	path, err := exec.LookPath("slirp4netns")
	if err != nil {
		return errors.New("slirp4netns is not installed")
	}
	return startUplink(exec.Command(path, "--configure", "--mtu=1500", "--disable-host-loopback", "--netns-type=path", "/proc/self/fd/3", uplinkInterface), inner)
}

func pastaUplink(inner *os.File, _ string) error {
	path, err := exec.LookPath("pasta")
	if err != nil {
		return errors.New("pasta is not installed (package passt)")
	}
	// No ports either way: they are ours.
	return startUplink(exec.Command(path, "--foreground", "--quiet", "--config-net", "--ns-ifname", uplinkInterface,
		"-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw", "--netns-only", "--netns", "/proc/self/fd/3"), inner)
}

// startUplink starts a program with f as descriptor 3, that is killed when this process ends.
func startUplink(cmd *exec.Cmd, f *os.File) error {
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	started := make(chan error)
	go func() {
		// The signal comes when the thread ends that started it (prctl(2), PR_SET_PDEATHSIG).
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			err = cmd.Wait()
			fmt.Fprintf(os.Stderr, "unionfs: %s ended (%v): containers reach nothing beyond their networks\n", cmd.Path, err)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	return nil
}
