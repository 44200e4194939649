package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
)

// parseLabels reads the values of -l: K=V, or K for an empty value.
func parseLabels(values []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, value := range values {
		name, content, _ := strings.Cut(value, "=")
		if name == "" {
			return nil, usageError("-l %q: the label has no name; want NAME=VALUE", value)
		}
		labels[name] = content
	}
	return labels, nil
}

// containerLabels are the labels and annotations that the command line gives a container, which are one thing in its OCI
// configuration. Those of --label win over those of --label-file.
func containerLabels(c *cli.Context) (map[string]string, error) {
	var values []string
	for _, file := range c.StringSlice("label-file") {
		lines, err := linesOf("--label-file", file)
		if err != nil {
			return nil, err
		}
		values = append(values, lines...)
	}
	labels, err := parseLabels(append(values, c.StringSlice("label")...))
	if err != nil {
		return nil, err
	}
	annotations, err := parseLabels(c.StringSlice("annotation"))
	if err != nil {
		return nil, err
	}
	for name := range annotations {
		if ownAnnotation(name) {
			return nil, usageError("--annotation %s: that one is kept by unionfs itself", name)
		}
	}
	maps.Copy(labels, annotations)
	return labels, nil
}

// openIDFile makes the file of --cidfile, and returns what writes a container's ID to it, or removes it if none was created.
func openIDFile(name string) (write func(id string, created bool), err error) {
	if name == "" {
		return func(string, bool) {}, nil
	}
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("--cidfile %s: the file is there already: is its container still running? Remove it, or name another", name)
	}
	if err != nil {
		return nil, fmt.Errorf("--cidfile: %w", err)
	}
	return func(id string, created bool) {
		if created {
			_, _ = file.WriteString(id)
		} else {
			_ = os.Remove(name)
		}
		file.Close()
	}, nil
}
