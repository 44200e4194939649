// Command peer is the program that the network tests run in containers and beside them.
//
//	peer serve PORT...      answer TCP connections and UDP packets on the ports with "HOSTNAME ADDRESS\n": ours, and the caller's
//	peer hold PORT N        accept N connections, and only then answer them all
//	peer ask ADDRESS        print the answer of a TCP connection
//	peer ask-udp ADDRESS    print the answer to a UDP packet
//	peer ask-many ADDRESS N open N connections at once, and print how many were answered, and from how many addresses
package main

import (
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
		return ask("tcp", args[1])
	case "ask-udp":
		return ask("udp", args[1])
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

const limit = 5 * time.Second

func dial(network, address string, patience time.Duration) (string, error) {
	c, err := net.DialTimeout(network, address, patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		if _, err := c.Write([]byte("hello")); err != nil {
			return "", err
		}
		buf := make([]byte, 2048)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	all, err := io.ReadAll(c)
	return string(all), err
}

func ask(network, address string) error {
	got, err := dial(network, address, limit)
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
			got, err := dial("tcp", address, 60*time.Second)
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
