package main

import (
	"encoding/json"
	"time"

	"github.com/urfave/cli/v2"

	"unionfs/runner"
)

// healthFlags are those of run and create about health checks, with Docker's names.
func healthFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "health-cmd", Usage: "run `COMMAND` by a shell in the container from time to time, to see whether it does its work"},
		&cli.DurationFlag{Name: "health-interval", Usage: "`TIME` between two checks", DefaultText: "30s"},
		&cli.DurationFlag{Name: "health-timeout", Usage: "a check fails after `TIME`", DefaultText: "30s"},
		&cli.IntFlag{Name: "health-retries", Usage: "it is unhealthy after `N` failures in a row", DefaultText: "3"},
		&cli.DurationFlag{Name: "health-start-period", Usage: "failures in the first `TIME` don't count", DefaultText: "0s"},
		&cli.DurationFlag{Name: "health-start-interval", Usage: "`TIME` between two checks in the start period", DefaultText: "5s"},
		&cli.BoolFlag{Name: "no-healthcheck", Usage: "leave out the image's check"},
	}
}

// healthAnnotation reads those flags, over what the image's configuration (its JSON) says; empty if there is no check.
func healthAnnotation(c *cli.Context, imageConfig []byte) (string, error) {
	var image struct {
		Config struct{ Healthcheck *runner.HealthCheck }
	}
	if len(imageConfig) > 0 {
		// That it is JSON was found out when it was pulled; a check in another shape counts as none.
		_ = json.Unmarshal(imageConfig, &image)
	}
	check := runner.HealthCheck{}
	if image.Config.Healthcheck != nil {
		check = *image.Config.Healthcheck
	}
	set := false
	for flag, into := range map[string]*time.Duration{
		"health-interval": &check.Interval, "health-timeout": &check.Timeout, "health-start-period": &check.StartPeriod, "health-start-interval": &check.StartInterval,
	} {
		if !c.IsSet(flag) {
			continue
		}
		d := c.Duration(flag)
		if d < 0 || d > 0 && d < time.Millisecond {
			return "", usageError("--%s %s: want at least 1ms, or 0s for the default", flag, d)
		}
		*into, set = d, true
	}
	if c.IsSet("health-retries") {
		if check.Retries = c.Int("health-retries"); check.Retries < 0 {
			return "", usageError("--health-retries: want a number from 0")
		}
		set = true
	}
	if command := c.String("health-cmd"); command != "" {
		check.Test, set = []string{"CMD-SHELL", command}, true
	}
	if c.Bool("no-healthcheck") {
		if set {
			return "", usageError("--no-healthcheck: it excludes the other --health flags")
		}
		return "", nil
	}
	if len(check.Test) == 0 || check.Test[0] == "NONE" {
		return "", nil
	}
	text, err := json.Marshal(check)
	return string(text), err
}
