package layerstore

import (
	"context"
	"time"
)

// attempts is how often a blob's transfer is tried without a byte of progress.
const attempts = 4

// patience counts the attempts since something went on.
type patience struct{ failed int }

// again waits before another attempt, longer each time. False if there were enough.
func (p *patience) again(ctx context.Context) bool {
	const pause = 100 * time.Millisecond
	p.failed++
	if p.failed >= attempts {
		return false
	}
	select {
	case <-time.After(pause << (2 * (p.failed - 1))):
		return true
	case <-ctx.Done():
		return false
	}
}
