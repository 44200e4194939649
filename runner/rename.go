package runner

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Rename gives the container another name, also while it runs. Errors wrap [ErrNameInUse] when the name is taken.
func (c *Container) Rename(name string) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("renaming container %s: %w", c.Name, err)
	}
	fresh, err := c.state.load(c.ID)
	if err != nil {
		return err
	}
	if fresh.Name == name {
		return nil
	}
	// The new name's file is locked until the description has it: until then, the name would look free.
	f, err := c.state.claimLocked(name, c.ID)
	if err != nil {
		return fmt.Errorf("renaming container %s: %w", c.Name, err)
	}
	defer f.Close()
	if err := c.change(func(spec *specs.Spec) { spec.Annotations[AnnotationName] = name }); err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("renaming container %s: %w", c.Name, err)
	}
	c.state.releaseName(fresh.Name, c.ID)
	c.Name = name
	c.note("rename", "oldName", "/"+fresh.Name)
	return nil
}

// writeSpec replaces config.json.
func (c *Container) writeSpec() error {
	config, err := json.Marshal(c.Spec)
	if err != nil {
		return err
	}
	tmp := c.configPath() + ".new"
	if err := os.WriteFile(tmp, append(config, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, c.configPath())
}
