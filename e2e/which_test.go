package e2e

import (
	"strings"
	"testing"
)

// TestWhichAndDiff asks a mount where its files come from and what was changed in it, and an unmounted upper branch the same.
func TestWhichAndDiff(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		got := c.script(t, `
			mkdir -p top/dir bottom/dir upper merged
			echo top > top/dir/both; echo bottom > bottom/dir/both; echo bottom > bottom/dir/below; echo x > bottom/gone
			$UNIONFS mount --lower top --lower bottom --upper upper merged
			echo changed >> merged/dir/below; rm merged/gone; echo new > merged/new
			$UNIONFS which merged merged/dir/both merged/dir/below merged/new | sed "s:$PWD/::g" | tr -s ' ' | sed 's/ $//'
			getfattr --only-values -n user.unionfs.branch merged/dir/both | sed "s:$PWD/::g"; echo
			$UNIONFS diff ./merged
			$UNIONFS diff merged/dir 2>&1 | sed "s:$PWD/::g"
			$UNIONFS which upper 2>&1 && exit 1
			$UNIONFS umount merged
			$UNIONFS diff --lower top --lower bottom upper
			$UNIONFS diff ./upper 2>&1 && exit 1
			true`)
		want := `PATH FROM OVER
merged upper top bottom
merged/dir/both top bottom
merged/dir/below upper bottom
merged/new upper
top
bottom
C /dir
C /dir/below
D /gone
A /new
unionfs: comparing merged/dir: it is inside a mounted union; give the directory that the union is mounted on
unionfs: upper: not a file or directory of a mounted union (of links and devices the kernel doesn't let it be asked)
C /dir
C /dir/below
D /gone
A /new
unionfs: comparing ./upper: it is neither a mounted union nor, without --lower, to be compared with anything; give the branches below it with --lower
`
		if strings.TrimRight(got, "\n") != strings.TrimRight(want, "\n") {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
	})
}
