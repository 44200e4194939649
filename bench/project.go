package bench

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Directories of a tree that programs work on.
const (
	projectName    = "project"    // sources in C, with a Makefile
	repositoryName = "repository" // a work tree of git's, all committed
)

// projectShape says how large they are.
type projectShape struct {
	sources int // .c files; there is a header for every ten
	tracked int // files in the repository
}

// makeProject makes both directories below root, always the same ones.
func makeProject(ctx context.Context, root string, shape projectShape) error {
	if err := makeSources(filepath.Join(root, projectName), shape.sources); err != nil {
		return fmt.Errorf("making the sources: %w", err)
	}
	if err := makeRepository(ctx, filepath.Join(root, repositoryName), shape.tracked); err != nil {
		return fmt.Errorf("making the repository: %w", err)
	}
	return nil
}

// makeSources makes a program of n source files. Its Makefile puts what it builds into $(OUT).
func makeSources(dir string, n int) error {
	if err := os.MkdirAll(filepath.Join(dir, "include"), 0o755); err != nil {
		return err
	}
	var declarations, calls, objects strings.Builder
	headers := max(1, n/10)
	for i := range headers {
		text := fmt.Sprintf("#ifndef H%d\n#define H%[1]d\n#include <stddef.h>\nstruct part%[1]d { int a[%d]; size_t n; };\n#define LIMIT%[1]d %d\n#endif\n", i, i+1, i*7)
		if err := writeFile(filepath.Join(dir, "include", fmt.Sprintf("part%d.h", i)), []byte(text), 0o644); err != nil {
			return err
		}
	}
	for i := range n {
		var text strings.Builder
		for j := range 5 {
			fmt.Fprintf(&text, "#include \"part%d.h\"\n", (i*3+j*7)%headers)
		}
		for j := range 8 {
			fmt.Fprintf(&text, "int f%d_%d(int x) {\n\tint sum = %d;\n\tfor (int i = 0; i < x; i++)\n\t\tsum = sum * 31 + (i ^ %d);\n\treturn sum;\n}\n", i, j, i+j, i*j)
		}
		if err := writeFile(filepath.Join(dir, fmt.Sprintf("s%d.c", i)), []byte(text.String()), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&declarations, "int f%d_0(int);\n", i)
		fmt.Fprintf(&calls, "\tsum += f%d_0(sum & 7);\n", i)
		fmt.Fprintf(&objects, " $(OUT)/s%d.o", i)
	}
	main := declarations.String() + "int main(void) {\n\tint sum = 0;\n" + calls.String() + "\treturn sum == 1;\n}\n"
	makefile := "CFLAGS := -O0 -Iinclude\n$(OUT)/program: $(OUT)/main.o" + objects.String() + "\n\t$(CC) -o $@ $^\n" +
		"$(OUT)/%.o: %.c $(wildcard include/*.h)\n\t$(CC) $(CFLAGS) -c -o $@ $<\n"
	if err := writeFile(filepath.Join(dir, "main.c"), []byte(main), 0o644); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, "Makefile"), []byte(makefile), 0o644)
}

// makeRepository commits n files in directories of forty. Objects are in one pack, as after a clone.
func makeRepository(ctx context.Context, dir string, n int) error {
	rng := rand.New(rand.NewPCG(2, 0))
	content := randomBytes(rng, 64<<10)
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("d%d", i/1600), fmt.Sprintf("d%d", i/40))
		if i%40 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		size := 200 + rng.IntN(4000)
		offset := rng.IntN(len(content) - size)
		if err := writeFile(filepath.Join(sub, fmt.Sprintf("file-%d", i)), content[offset:offset+size], 0o644); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-q", "-m", "all"}, {"-c", "pack.threads=1", "repack", "-adq"}, {"prune-packed", "-q"},
	} {
		command := exec.CommandContext(ctx, "git", args...)
		command.Dir, command.Env = dir, gitEnvironment()
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(output)))
		}
	}
	// Sample hooks and the like differ between versions of git.
	for _, name := range []string{"hooks", "description", "info", "logs", "COMMIT_EDITMSG"} {
		if err := os.RemoveAll(filepath.Join(dir, ".git", name)); err != nil {
			return err
		}
	}
	return filepath.WalkDir(filepath.Join(dir, ".git"), func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		return os.Chtimes(name, treeTime, treeTime)
	})
}

// gitEnvironment keeps the user's configuration away, and makes commits equal.
func gitEnvironment() []string {
	return append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=bench", "GIT_AUTHOR_EMAIL=bench@localhost", "GIT_AUTHOR_DATE=2026-01-01T00:00:00Z",
		"GIT_COMMITTER_NAME=bench", "GIT_COMMITTER_EMAIL=bench@localhost", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z")
}
