package layerstore

import (
	"os"
	"testing"
)

// checkEmpty fails the test if anything is in the store.
func checkEmpty(t *testing.T, s *Store) {
	t.Helper()
	for _, d := range []string{layersDir, imagesDir, refsDir, mergedDir, stagingDir} {
		entries, err := os.ReadDir(s.path(d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("%s/%s was left in the store", d, e.Name())
		}
	}
}
