// Package modeltest is what the random tests of the union share: layers with whiteouts beside the plain directory that is
// their merge, random operations done by system calls to two trees at once, and a description of a tree that can be
// compared.
//
// A Player uses raw system calls only: the process that serves a FUSE mount may play on it.
package modeltest

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"
)

var seed = flag.Uint64("seed", 0, "seed of the random tests; 0 takes one from the clock and prints it")

// NewRand returns a source of random numbers whose seed is printed when the test fails.
func NewRand(t testing.TB) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Helper()
	t.Logf("seed %d (repeat with -seed %d)", s, s)
	return Rand(s)
}

// Rand returns the source of random numbers of a seed.
func Rand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// Names are those that files of random trees have; hard links have an "h" behind them.
func Names() []string { return []string{"a", "b", "c", "d", "e"} }

// Path returns a random path with a leading slash, of a file that may exist or not.
func Path(rng *rand.Rand) string {
	names := Names()
	p := ""
	for range 1 + rng.IntN(3) {
		p += "/" + names[rng.IntN(len(names))]
		if rng.IntN(6) == 0 {
			p += "h"
		}
	}
	return p
}
