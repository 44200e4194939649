// Command peer is the program that the network tests run in containers and beside them.
//
//	peer serve PORT...      answer TCP connections and UDP packets on the ports with "HOSTNAME ADDRESS\n": ours, and the caller's
//	peer hold PORT N        accept N connections, and only then answer them all
//	peer ask ADDRESS [S]    print the answer of a TCP connection, within S seconds, or a minute
//	peer ask-udp ADDRESS [S]  print the answer to a UDP packet, which is sent again every second
//	peer ask-many ADDRESS N open N connections at once, and print how many were answered, and from how many addresses
package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("want a verb and its arguments")
	}
	switch args[0] {
	case "serve":
		return serve(args[1:])
	case "hold":
		return hold(args[1], number(args[2]))
	case "ask":
		return ask("tcp", args[1:])
	case "ask-udp":
		return ask("udp", args[1:])
	case "ask-many":
		return askMany(args[1], number(args[2]))
	}
	return fmt.Errorf("unknown verb %s", args[0])
}

func number(s string) int {
	n, _ := strconv.Atoi(s)
	return n
}

func answer(caller net.Addr) []byte {
	name, _ := os.Hostname()
	return fmt.Appendf(nil, "%s %s\n", name, caller)
}

func serve(ports []string) error {
	failed := make(chan error)
	for _, port := range ports {
		tcp, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		udp, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := tcp.Accept()
				if err != nil {
					failed <- err
					return
				}
				_, _ = c.Write(answer(c.RemoteAddr()))
				c.Close()
			}
		}()
		go func() {
			buf := make([]byte, 2048)
			for {
				_, from, err := udp.ReadFrom(buf)
				if err != nil {
					failed <- err
					return
				}
				_, _ = udp.WriteTo(answer(from), from)
			}
		}()
	}
	fmt.Println("ready")
	return <-failed
}

func hold(port string, n int) error {
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		var held []net.Conn
		for len(held) < n {
			c, err := l.Accept()
			if err != nil {
				return err
			}
			held = append(held, c)
		}
		for _, c := range held {
			_, _ = c.Write(answer(c.RemoteAddr()))
			c.Close()
		}
	}
}

// limit is the patience of who expects an answer: only one that doesn't come takes it up.
const limit = time.Minute

func dial(network, address string, patience time.Duration) (string, error) {
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		return exchange(c, time.Now().Add(patience))
	}
	all, err := io.ReadAll(c)
	return string(all), err
}

// exchange sends a packet, again every second until there is an answer: one may be lost on the way.
func exchange(c net.Conn, deadline time.Time) (string, error) {
	buf := make([]byte, 2048)
	for {
		if _, err := c.Write([]byte("hello")); err != nil {
			return "", err
		}
		again := time.Now().Add(time.Second)
		_ = c.SetReadDeadline(again)
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && again.Before(deadline) {
			continue
		}
		return string(buf[:n]), err
	}
}

func ask(network string, args []string) error {
	patience := limit
	if len(args) > 1 {
		patience = time.Duration(number(args[1])) * time.Second
	}
	got, err := dial(network, args[0], patience)
	fmt.Print(got)
	return err
}

func askMany(address string, n int) error {
	var mu sync.Mutex
	var all sync.WaitGroup
	good := 0
	var failed error
	for range n {
		all.Go(func() {
			got, err := dial("tcp", address, 3*limit)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
			} else if got != "" {
				good++
			}
		})
	}
	all.Wait()
	fmt.Println(good)
	return failed
}
