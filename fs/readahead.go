package fs

import (
	"fmt"
	"os"
	"strconv"

	"unionfs/internal/mountpoint"
)

// readaheadKiB is how far the kernel reads ahead on a mount. Its default is 128; at 512 a cold sequential read takes about
// three quarters of the time, and more gains nothing.
const readaheadKiB = 512

// widenReadahead tells the kernel to read ahead further. INIT can only make it less. Nobody but the machine's root may, and
// without it all works just the same, so no error is of interest.
func widenReadahead(target string) {
	major, minor, err := mountpoint.DeviceNumberOf(target)
	if err != nil {
		return
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", major, minor)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	_, _ = f.WriteString(strconv.Itoa(readaheadKiB))
	_ = f.Close()
}
