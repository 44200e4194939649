package runner

// The system calls' names and numbers, from the kernel's tables (include/uapi/asm-generic/unistd.h, arch/*/syscall*.tbl)
// by way of github.com/elastic/go-seccomp-bpf. Written by "go test ./runner -run TestSyscallTables -update".
const (
	syscallsX86_64 = `
_sysctl=156 accept4=288 accept=43 access=21 acct=163 add_key=248 adjtimex=159 afs_syscall=183 alarm=37
arch_prctl=158 bind=49 bpf=321 brk=12 cachestat=451 capget=125 capset=126 chdir=80 chmod=90 chown=92 chroot=161
clock_adjtime=305 clock_getres=229 clock_gettime=228 clock_nanosleep=230 clock_settime=227 clone3=435 clone=56
close=3 close_range=436 connect=42 copy_file_range=326 creat=85 create_module=174 delete_module=176 dup2=33
dup3=292 dup=32 epoll_create1=291 epoll_create=213 epoll_ctl=233 epoll_ctl_old=214 epoll_pwait2=441 epoll_pwait=281
epoll_wait=232 epoll_wait_old=215 eventfd2=290 eventfd=284 execve=59 execveat=322 exit=60 exit_group=231
faccessat2=439 faccessat=269 fadvise64=221 fallocate=285 fanotify_init=300 fanotify_mark=301 fchdir=81 fchmod=91
fchmodat2=452 fchmodat=268 fchown=93 fchownat=260 fcntl=72 fdatasync=75 fgetxattr=193 finit_module=313
flistxattr=196 flock=73 fork=57 fremovexattr=199 fsconfig=431 fsetxattr=190 fsmount=432 fsopen=430 fspick=433
fstat=5 fstatfs=138 fsync=74 ftruncate=77 futex=202 futex_requeue=456 futex_wait=455 futex_waitv=449 futex_wake=454
futimesat=261 get_kernel_syms=177 get_mempolicy=239 get_robust_list=274 get_thread_area=211 getcpu=309 getcwd=79
getdents64=217 getdents=78 getegid=108 geteuid=107 getgid=104 getgroups=115 getitimer=36 getpeername=52 getpgid=121
getpgrp=111 getpid=39 getpmsg=181 getppid=110 getpriority=140 getrandom=318 getresgid=120 getresuid=118
getrlimit=97 getrusage=98 getsid=124 getsockname=51 getsockopt=55 gettid=186 gettimeofday=96 getuid=102
getxattr=191 getxattrat=464 init_module=175 inotify_add_watch=254 inotify_init1=294 inotify_init=253
inotify_rm_watch=255 io_cancel=210 io_destroy=207 io_getevents=208 io_pgetevents=333 io_setup=206 io_submit=209
io_uring_enter=426 io_uring_register=427 io_uring_setup=425 ioctl=16 ioperm=173 iopl=172 ioprio_get=252
ioprio_set=251 kcmp=312 kexec_file_load=320 kexec_load=246 keyctl=250 kill=62 landlock_add_rule=445
landlock_create_ruleset=444 landlock_restrict_self=446 lchown=94 lgetxattr=192 link=86 linkat=265 listen=50
listmount=458 listxattr=194 listxattrat=465 llistxattr=195 lookup_dcookie=212 lremovexattr=198 lseek=8
lsetxattr=189 lsm_get_self_attr=459 lsm_list_modules=461 lsm_set_self_attr=460 lstat=6 madvise=28
map_shadow_stack=453 mbind=237 membarrier=324 memfd_create=319 memfd_secret=447 migrate_pages=256 mincore=27
mkdir=83 mkdirat=258 mknod=133 mknodat=259 mlock2=325 mlock=149 mlockall=151 mmap=9 modify_ldt=154 mount=165
mount_setattr=442 move_mount=429 move_pages=279 mprotect=10 mq_getsetattr=245 mq_notify=244 mq_open=240
mq_timedreceive=243 mq_timedsend=242 mq_unlink=241 mremap=25 mseal=462 msgctl=71 msgget=68 msgrcv=70 msgsnd=69
msync=26 munlock=150 munlockall=152 munmap=11 name_to_handle_at=303 nanosleep=35 newfstatat=262 nfsservctl=180
open=2 open_by_handle_at=304 open_tree=428 open_tree_attr=467 openat2=437 openat=257 pause=34 perf_event_open=298
personality=135 pidfd_getfd=438 pidfd_open=434 pidfd_send_signal=424 pipe2=293 pipe=22 pivot_root=155
pkey_alloc=330 pkey_free=331 pkey_mprotect=329 poll=7 ppoll=271 prctl=157 pread64=17 preadv2=327 preadv=295
prlimit64=302 process_madvise=440 process_mrelease=448 process_vm_readv=310 process_vm_writev=311 pselect6=270
ptrace=101 putpmsg=182 pwrite64=18 pwritev2=328 pwritev=296 query_module=178 quotactl=179 quotactl_fd=443 read=0
readahead=187 readlink=89 readlinkat=267 readv=19 reboot=169 recvfrom=45 recvmmsg=299 recvmsg=47
remap_file_pages=216 removexattr=197 removexattrat=466 rename=82 renameat2=316 renameat=264 request_key=249
restart_syscall=219 rmdir=84 rseq=334 rt_sigaction=13 rt_sigpending=127 rt_sigprocmask=14 rt_sigqueueinfo=129
rt_sigreturn=15 rt_sigsuspend=130 rt_sigtimedwait=128 rt_tgsigqueueinfo=297 sched_get_priority_max=146
sched_get_priority_min=147 sched_getaffinity=204 sched_getattr=315 sched_getparam=143 sched_getscheduler=145
sched_rr_get_interval=148 sched_setaffinity=203 sched_setattr=314 sched_setparam=142 sched_setscheduler=144
sched_yield=24 seccomp=317 security=185 select=23 semctl=66 semget=64 semop=65 semtimedop=220 sendfile=40
sendmmsg=307 sendmsg=46 sendto=44 set_mempolicy=238 set_mempolicy_home_node=450 set_robust_list=273
set_thread_area=205 set_tid_address=218 setdomainname=171 setfsgid=123 setfsuid=122 setgid=106 setgroups=116
sethostname=170 setitimer=38 setns=308 setpgid=109 setpriority=141 setregid=114 setresgid=119 setresuid=117
setreuid=113 setrlimit=160 setsid=112 setsockopt=54 settimeofday=164 setuid=105 setxattr=188 setxattrat=463
shmat=30 shmctl=31 shmdt=67 shmget=29 shutdown=48 sigaltstack=131 signalfd4=289 signalfd=282 socket=41
socketpair=53 splice=275 stat=4 statfs=137 statmount=457 statx=332 swapoff=168 swapon=167 symlink=88 symlinkat=266
sync=162 sync_file_range=277 syncfs=306 sysfs=139 sysinfo=99 syslog=103 tee=276 tgkill=234 time=201
timer_create=222 timer_delete=226 timer_getoverrun=225 timer_gettime=224 timer_settime=223 timerfd_create=283
timerfd_gettime=287 timerfd_settime=286 times=100 tkill=200 truncate=76 tuxcall=184 umask=95 umount2=166 uname=63
unlink=87 unlinkat=263 unshare=272 uretprobe=335 uselib=134 userfaultfd=323 ustat=136 utime=132 utimensat=280
utimes=235 vfork=58 vhangup=153 vmsplice=278 vserver=236 wait4=61 waitid=247 write=1 writev=20`
	syscallsX86 = `
_llseek=140 _newselect=142 _sysctl=149 accept4=364 access=33 acct=51 add_key=286 adjtimex=124 afs_syscall=137
alarm=27 arch_prctl=384 bdflush=134 bind=361 bpf=357 break=17 brk=45 cachestat=451 capget=184 capset=185 chdir=12
chmod=15 chown32=212 chown=182 chroot=61 clock_adjtime64=405 clock_adjtime=343 clock_getres=266
clock_getres_time64=406 clock_gettime64=403 clock_gettime=265 clock_nanosleep=267 clock_nanosleep_time64=407
clock_settime64=404 clock_settime=264 clone3=435 clone=120 close=6 close_range=436 connect=362 copy_file_range=377
creat=8 create_module=127 delete_module=129 dup2=63 dup3=330 dup=41 epoll_create1=329 epoll_create=254
epoll_ctl=255 epoll_pwait2=441 epoll_pwait=319 epoll_wait=256 eventfd2=328 eventfd=323 execve=11 execveat=358
exit=1 exit_group=252 faccessat2=439 faccessat=307 fadvise64=250 fadvise64_64=272 fallocate=324 fanotify_init=338
fanotify_mark=339 fchdir=133 fchmod=94 fchmodat2=452 fchmodat=306 fchown32=207 fchown=95 fchownat=298 fcntl64=221
fcntl=55 fdatasync=148 fgetxattr=231 finit_module=350 flistxattr=234 flock=143 fork=2 fremovexattr=237 fsconfig=431
fsetxattr=228 fsmount=432 fsopen=430 fspick=433 fstat64=197 fstat=108 fstatat64=300 fstatfs64=269 fstatfs=100
fsync=118 ftime=35 ftruncate64=194 ftruncate=93 futex=240 futex_requeue=456 futex_time64=422 futex_wait=455
futex_waitv=449 futex_wake=454 futimesat=299 get_kernel_syms=130 get_mempolicy=275 get_robust_list=312
get_thread_area=244 getcpu=318 getcwd=183 getdents64=220 getdents=141 getegid32=202 getegid=50 geteuid32=201
geteuid=49 getgid32=200 getgid=47 getgroups32=205 getgroups=80 getitimer=105 getpeername=368 getpgid=132 getpgrp=65
getpid=20 getpmsg=188 getppid=64 getpriority=96 getrandom=355 getresgid32=211 getresgid=171 getresuid32=209
getresuid=165 getrlimit=76 getrusage=77 getsid=147 getsockname=367 getsockopt=365 gettid=224 gettimeofday=78
getuid32=199 getuid=24 getxattr=229 getxattrat=464 gtty=32 idle=112 init_module=128 inotify_add_watch=292
inotify_init1=332 inotify_init=291 inotify_rm_watch=293 io_cancel=249 io_destroy=246 io_getevents=247
io_pgetevents=385 io_pgetevents_time64=416 io_setup=245 io_submit=248 io_uring_enter=426 io_uring_register=427
io_uring_setup=425 ioctl=54 ioperm=101 iopl=110 ioprio_get=290 ioprio_set=289 ipc=117 kcmp=349 kexec_load=283
keyctl=288 kill=37 landlock_add_rule=445 landlock_create_ruleset=444 landlock_restrict_self=446 lchown32=198
lchown=16 lgetxattr=230 link=9 linkat=303 listen=363 listmount=458 listxattr=232 listxattrat=465 llistxattr=233
lock=53 lookup_dcookie=253 lremovexattr=236 lseek=19 lsetxattr=227 lsm_get_self_attr=459 lsm_list_modules=461
lsm_set_self_attr=460 lstat64=196 lstat=107 madvise=219 map_shadow_stack=453 mbind=274 membarrier=375
memfd_create=356 memfd_secret=447 migrate_pages=294 mincore=218 mkdir=39 mkdirat=296 mknod=14 mknodat=297
mlock2=376 mlock=150 mlockall=152 mmap2=192 mmap=90 modify_ldt=123 mount=21 mount_setattr=442 move_mount=429
move_pages=317 mprotect=125 mpx=56 mq_getsetattr=282 mq_notify=281 mq_open=277 mq_timedreceive=280
mq_timedreceive_time64=419 mq_timedsend=279 mq_timedsend_time64=418 mq_unlink=278 mremap=163 mseal=462 msgctl=402
msgget=399 msgrcv=401 msgsnd=400 msync=144 munlock=151 munlockall=153 munmap=91 name_to_handle_at=341 nanosleep=162
nfsservctl=169 nice=34 oldfstat=28 oldlstat=84 oldolduname=59 oldstat=18 olduname=109 open=5 open_by_handle_at=342
open_tree=428 open_tree_attr=467 openat2=437 openat=295 pause=29 perf_event_open=336 personality=136
pidfd_getfd=438 pidfd_open=434 pidfd_send_signal=424 pipe2=331 pipe=42 pivot_root=217 pkey_alloc=381 pkey_free=382
pkey_mprotect=380 poll=168 ppoll=309 ppoll_time64=414 prctl=172 pread64=180 preadv2=378 preadv=333 prlimit64=340
process_madvise=440 process_mrelease=448 process_vm_readv=347 process_vm_writev=348 prof=44 profil=98 pselect6=308
pselect6_time64=413 ptrace=26 putpmsg=189 pwrite64=181 pwritev2=379 pwritev=334 query_module=167 quotactl=131
quotactl_fd=443 read=3 readahead=225 readdir=89 readlink=85 readlinkat=305 readv=145 reboot=88 recvfrom=371
recvmmsg=337 recvmmsg_time64=417 recvmsg=372 remap_file_pages=257 removexattr=235 removexattrat=466 rename=38
renameat2=353 renameat=302 request_key=287 restart_syscall=0 rmdir=40 rseq=386 rt_sigaction=174 rt_sigpending=176
rt_sigprocmask=175 rt_sigqueueinfo=178 rt_sigreturn=173 rt_sigsuspend=179 rt_sigtimedwait=177
rt_sigtimedwait_time64=421 rt_tgsigqueueinfo=335 sched_get_priority_max=159 sched_get_priority_min=160
sched_getaffinity=242 sched_getattr=352 sched_getparam=155 sched_getscheduler=157 sched_rr_get_interval=161
sched_rr_get_interval_time64=423 sched_setaffinity=241 sched_setattr=351 sched_setparam=154 sched_setscheduler=156
sched_yield=158 seccomp=354 select=82 semctl=394 semget=393 semtimedop_time64=420 sendfile64=239 sendfile=187
sendmmsg=345 sendmsg=370 sendto=369 set_mempolicy=276 set_mempolicy_home_node=450 set_robust_list=311
set_thread_area=243 set_tid_address=258 setdomainname=121 setfsgid32=216 setfsgid=139 setfsuid32=215 setfsuid=138
setgid32=214 setgid=46 setgroups32=206 setgroups=81 sethostname=74 setitimer=104 setns=346 setpgid=57
setpriority=97 setregid32=204 setregid=71 setresgid32=210 setresgid=170 setresuid32=208 setresuid=164
setreuid32=203 setreuid=70 setrlimit=75 setsid=66 setsockopt=366 settimeofday=79 setuid32=213 setuid=23
setxattr=226 setxattrat=463 sgetmask=68 shmat=397 shmctl=396 shmdt=398 shmget=395 shutdown=373 sigaction=67
sigaltstack=186 signal=48 signalfd4=327 signalfd=321 sigpending=73 sigprocmask=126 sigreturn=119 sigsuspend=72
socket=359 socketcall=102 socketpair=360 splice=313 ssetmask=69 stat64=195 stat=106 statfs64=268 statfs=99
statmount=457 statx=383 stime=25 stty=31 swapoff=115 swapon=87 symlink=83 symlinkat=304 sync=36 sync_file_range=314
syncfs=344 sysfs=135 sysinfo=116 syslog=103 tee=315 tgkill=270 time=13 timer_create=259 timer_delete=263
timer_getoverrun=262 timer_gettime64=408 timer_gettime=261 timer_settime64=409 timer_settime=260 timerfd_create=322
timerfd_gettime64=410 timerfd_gettime=326 timerfd_settime64=411 timerfd_settime=325 times=43 tkill=238
truncate64=193 truncate=92 ugetrlimit=191 ulimit=58 umask=60 umount2=52 umount=22 uname=122 unlink=10 unlinkat=301
unshare=310 uselib=86 userfaultfd=374 ustat=62 utime=30 utimensat=320 utimensat_time64=412 utimes=271 vfork=190
vhangup=111 vm86=166 vm86old=113 vmsplice=316 vserver=273 wait4=114 waitid=284 waitpid=7 write=4 writev=146`
	syscallsX32 = `
_sysctl=156 accept4=288 accept=43 access=21 acct=163 add_key=248 adjtimex=159 afs_syscall=183 alarm=37
arch_prctl=158 bind=49 bpf=321 brk=12 cachestat=451 capget=125 capset=126 chdir=80 chmod=90 chown=92 chroot=161
clock_adjtime=305 clock_getres=229 clock_gettime=228 clock_nanosleep=230 clock_settime=227 clone3=435 clone=56
close=3 close_range=436 connect=42 copy_file_range=326 creat=85 create_module=174 delete_module=176 dup2=33
dup3=292 dup=32 epoll_create1=291 epoll_create=213 epoll_ctl=233 epoll_ctl_old=214 epoll_pwait2=441 epoll_pwait=281
epoll_wait=232 epoll_wait_old=215 eventfd2=290 eventfd=284 execve=520 execveat=545 exit=60 exit_group=231
faccessat2=439 faccessat=269 fadvise64=221 fallocate=285 fanotify_init=300 fanotify_mark=301 fchdir=81 fchmod=91
fchmodat2=452 fchmodat=268 fchown=93 fchownat=260 fcntl=72 fdatasync=75 fgetxattr=193 finit_module=313
flistxattr=196 flock=73 fork=57 fremovexattr=199 fsconfig=431 fsetxattr=190 fsmount=432 fsopen=430 fspick=433
fstat=5 fstatfs=138 fsync=74 ftruncate=77 futex=202 futex_requeue=456 futex_wait=455 futex_waitv=449 futex_wake=454
futimesat=261 get_kernel_syms=177 get_mempolicy=239 get_robust_list=531 get_thread_area=211 getcpu=309 getcwd=79
getdents64=217 getdents=78 getegid=108 geteuid=107 getgid=104 getgroups=115 getitimer=36 getpeername=52 getpgid=121
getpgrp=111 getpid=39 getpmsg=181 getppid=110 getpriority=140 getrandom=318 getresgid=120 getresuid=118
getrlimit=97 getrusage=98 getsid=124 getsockname=51 getsockopt=542 gettid=186 gettimeofday=96 getuid=102
getxattr=191 getxattrat=464 init_module=175 inotify_add_watch=254 inotify_init1=294 inotify_init=253
inotify_rm_watch=255 io_cancel=210 io_destroy=207 io_getevents=208 io_pgetevents=333 io_setup=543 io_submit=544
io_uring_enter=426 io_uring_register=427 io_uring_setup=425 ioctl=514 ioperm=173 iopl=172 ioprio_get=252
ioprio_set=251 kcmp=312 kexec_file_load=320 kexec_load=528 keyctl=250 kill=62 landlock_add_rule=445
landlock_create_ruleset=444 landlock_restrict_self=446 lchown=94 lgetxattr=192 link=86 linkat=265 listen=50
listmount=458 listxattr=194 listxattrat=465 llistxattr=195 lookup_dcookie=212 lremovexattr=198 lseek=8
lsetxattr=189 lsm_get_self_attr=459 lsm_list_modules=461 lsm_set_self_attr=460 lstat=6 madvise=28
map_shadow_stack=453 mbind=237 membarrier=324 memfd_create=319 memfd_secret=447 migrate_pages=256 mincore=27
mkdir=83 mkdirat=258 mknod=133 mknodat=259 mlock2=325 mlock=149 mlockall=151 mmap=9 modify_ldt=154 mount=165
mount_setattr=442 move_mount=429 move_pages=533 mprotect=10 mq_getsetattr=245 mq_notify=527 mq_open=240
mq_timedreceive=243 mq_timedsend=242 mq_unlink=241 mremap=25 mseal=462 msgctl=71 msgget=68 msgrcv=70 msgsnd=69
msync=26 munlock=150 munlockall=152 munmap=11 name_to_handle_at=303 nanosleep=35 newfstatat=262 nfsservctl=180
open=2 open_by_handle_at=304 open_tree=428 open_tree_attr=467 openat2=437 openat=257 pause=34 perf_event_open=298
personality=135 pidfd_getfd=438 pidfd_open=434 pidfd_send_signal=424 pipe2=293 pipe=22 pivot_root=155
pkey_alloc=330 pkey_free=331 pkey_mprotect=329 poll=7 ppoll=271 prctl=157 pread64=17 preadv2=546 preadv=534
prlimit64=302 process_madvise=440 process_mrelease=448 process_vm_readv=539 process_vm_writev=540 pselect6=270
ptrace=521 putpmsg=182 pwrite64=18 pwritev2=547 pwritev=535 query_module=178 quotactl=179 quotactl_fd=443 read=0
readahead=187 readlink=89 readlinkat=267 readv=515 reboot=169 recvfrom=517 recvmmsg=537 recvmsg=519
remap_file_pages=216 removexattr=197 removexattrat=466 rename=82 renameat2=316 renameat=264 request_key=249
restart_syscall=219 rmdir=84 rseq=334 rt_sigaction=512 rt_sigpending=522 rt_sigprocmask=14 rt_sigqueueinfo=524
rt_sigreturn=513 rt_sigsuspend=130 rt_sigtimedwait=523 rt_tgsigqueueinfo=536 sched_get_priority_max=146
sched_get_priority_min=147 sched_getaffinity=204 sched_getattr=315 sched_getparam=143 sched_getscheduler=145
sched_rr_get_interval=148 sched_setaffinity=203 sched_setattr=314 sched_setparam=142 sched_setscheduler=144
sched_yield=24 seccomp=317 security=185 select=23 semctl=66 semget=64 semop=65 semtimedop=220 sendfile=40
sendmmsg=538 sendmsg=518 sendto=44 set_mempolicy=238 set_mempolicy_home_node=450 set_robust_list=530
set_thread_area=205 set_tid_address=218 setdomainname=171 setfsgid=123 setfsuid=122 setgid=106 setgroups=116
sethostname=170 setitimer=38 setns=308 setpgid=109 setpriority=141 setregid=114 setresgid=119 setresuid=117
setreuid=113 setrlimit=160 setsid=112 setsockopt=541 settimeofday=164 setuid=105 setxattr=188 setxattrat=463
shmat=30 shmctl=31 shmdt=67 shmget=29 shutdown=48 sigaltstack=525 signalfd4=289 signalfd=282 socket=41
socketpair=53 splice=275 stat=4 statfs=137 statmount=457 statx=332 swapoff=168 swapon=167 symlink=88 symlinkat=266
sync=162 sync_file_range=277 syncfs=306 sysfs=139 sysinfo=99 syslog=103 tee=276 tgkill=234 time=201
timer_create=526 timer_delete=226 timer_getoverrun=225 timer_gettime=224 timer_settime=223 timerfd_create=283
timerfd_gettime=287 timerfd_settime=286 times=100 tkill=200 truncate=76 tuxcall=184 umask=95 umount2=166 uname=63
unlink=87 unlinkat=263 unshare=272 uretprobe=335 uselib=134 userfaultfd=323 ustat=136 utime=132 utimensat=280
utimes=235 vfork=58 vhangup=153 vmsplice=532 vserver=236 wait4=61 waitid=529 write=1 writev=516`
	syscallsAARCH64 = `
accept4=242 accept=202 acct=89 add_key=217 adjtimex=171 arch_specific_syscall=244 bind=200 bpf=280 brk=214
cachestat=451 capget=90 capset=91 chdir=49 chroot=51 clock_adjtime64=405 clock_adjtime=266 clock_getres=114
clock_getres_time64=406 clock_gettime64=403 clock_gettime=113 clock_nanosleep=115 clock_nanosleep_time64=407
clock_settime64=404 clock_settime=112 clone3=435 clone=220 close=57 close_range=436 connect=203 copy_file_range=285
delete_module=106 dup3=24 dup=23 epoll_create1=20 epoll_ctl=21 epoll_pwait2=441 epoll_pwait=22 eventfd2=19
execve=221 execveat=281 exit=93 exit_group=94 faccessat2=439 faccessat=48 fadvise64=223 fallocate=47
fanotify_init=262 fanotify_mark=263 fchdir=50 fchmod=52 fchmodat2=452 fchmodat=53 fchown=55 fchownat=54 fcntl=25
fdatasync=83 fgetxattr=10 finit_module=273 flistxattr=13 flock=32 fremovexattr=16 fsconfig=431 fsetxattr=7
fsmount=432 fsopen=430 fspick=433 fstat=80 fstatat=79 fstatfs=44 fsync=82 ftruncate=46 futex=98 futex_requeue=456
futex_time64=422 futex_wait=455 futex_waitv=449 futex_wake=454 get_mempolicy=236 get_robust_list=100 getcpu=168
getcwd=17 getdents64=61 getegid=177 geteuid=175 getgid=176 getgroups=158 getitimer=102 getpeername=205 getpgid=155
getpid=172 getppid=173 getpriority=141 getrandom=278 getresgid=150 getresuid=148 getrlimit=163 getrusage=165
getsid=156 getsockname=204 getsockopt=209 gettid=178 gettimeofday=169 getuid=174 getxattr=8 getxattrat=464
init_module=105 inotify_add_watch=27 inotify_init1=26 inotify_rm_watch=28 io_cancel=3 io_destroy=1 io_getevents=4
io_pgetevents=292 io_pgetevents_time64=416 io_setup=0 io_submit=2 io_uring_enter=426 io_uring_register=427
io_uring_setup=425 ioctl=29 ioprio_get=31 ioprio_set=30 kcmp=272 kexec_file_load=294 kexec_load=104 keyctl=219
kill=129 landlock_add_rule=445 landlock_create_ruleset=444 landlock_restrict_self=446 lgetxattr=9 linkat=37
listen=201 listmount=458 listxattr=11 listxattrat=465 llistxattr=12 lookup_dcookie=18 lremovexattr=15 lseek=62
lsetxattr=6 lsm_get_self_attr=459 lsm_list_modules=461 lsm_set_self_attr=460 madvise=233 map_shadow_stack=453
mbind=235 membarrier=283 memfd_create=279 memfd_secret=447 migrate_pages=238 mincore=232 mkdirat=34 mknodat=33
mlock2=284 mlock=228 mlockall=230 mmap=222 mount=40 mount_setattr=442 move_mount=429 move_pages=239 mprotect=226
mq_getsetattr=185 mq_notify=184 mq_open=180 mq_timedreceive=183 mq_timedreceive_time64=419 mq_timedsend=182
mq_timedsend_time64=418 mq_unlink=181 mremap=216 mseal=462 msgctl=187 msgget=186 msgrcv=188 msgsnd=189 msync=227
munlock=229 munlockall=231 munmap=215 name_to_handle_at=264 nanosleep=101 nfsservctl=42 open_by_handle_at=265
open_tree=428 open_tree_attr=467 openat2=437 openat=56 perf_event_open=241 personality=92 pidfd_getfd=438
pidfd_open=434 pidfd_send_signal=424 pipe2=59 pivot_root=41 pkey_alloc=289 pkey_free=290 pkey_mprotect=288 ppoll=73
ppoll_time64=414 prctl=167 pread64=67 preadv2=286 preadv=69 prlimit64=261 process_madvise=440 process_mrelease=448
process_vm_readv=270 process_vm_writev=271 pselect6=72 pselect6_time64=413 ptrace=117 pwrite64=68 pwritev2=287
pwritev=70 quotactl=60 quotactl_fd=443 read=63 readahead=213 readlinkat=78 readv=65 reboot=142 recvfrom=207
recvmmsg=243 recvmmsg_time64=417 recvmsg=212 remap_file_pages=234 removexattr=14 removexattrat=466 renameat2=276
renameat=38 request_key=218 restart_syscall=128 rseq=293 rt_sigaction=134 rt_sigpending=136 rt_sigprocmask=135
rt_sigqueueinfo=138 rt_sigreturn=139 rt_sigsuspend=133 rt_sigtimedwait=137 rt_sigtimedwait_time64=421
rt_tgsigqueueinfo=240 sched_get_priority_max=125 sched_get_priority_min=126 sched_getaffinity=123 sched_getattr=275
sched_getparam=121 sched_getscheduler=120 sched_rr_get_interval=127 sched_rr_get_interval_time64=423
sched_setaffinity=122 sched_setattr=274 sched_setparam=118 sched_setscheduler=119 sched_yield=124 seccomp=277
semctl=191 semget=190 semop=193 semtimedop=192 semtimedop_time64=420 sendfile=71 sendmmsg=269 sendmsg=211
sendto=206 set_mempolicy=237 set_mempolicy_home_node=450 set_robust_list=99 set_tid_address=96 setdomainname=162
setfsgid=152 setfsuid=151 setgid=144 setgroups=159 sethostname=161 setitimer=103 setns=268 setpgid=154
setpriority=140 setregid=143 setresgid=149 setresuid=147 setreuid=145 setrlimit=164 setsid=157 setsockopt=208
settimeofday=170 setuid=146 setxattr=5 setxattrat=463 shmat=196 shmctl=195 shmdt=197 shmget=194 shutdown=210
sigaltstack=132 signalfd4=74 socket=198 socketpair=199 splice=76 statfs=43 statmount=457 statx=291 swapoff=225
swapon=224 symlinkat=36 sync=81 sync_file_range=84 syncfs=267 sysinfo=179 syslog=116 tee=77 tgkill=131
timer_create=107 timer_delete=111 timer_getoverrun=109 timer_gettime64=408 timer_gettime=108 timer_settime64=409
timer_settime=110 timerfd_create=85 timerfd_gettime64=410 timerfd_gettime=87 timerfd_settime64=411
timerfd_settime=86 times=153 tkill=130 truncate=45 umask=166 umount2=39 uname=160 unlinkat=35 unshare=97
userfaultfd=282 utimensat=88 utimensat_time64=412 vhangup=58 vmsplice=75 wait4=260 waitid=95 write=64 writev=66`
	syscallsARM = `
_llseek=140 _newselect=142 _sysctl=149 accept4=366 accept=285 access=33 acct=51 add_key=309 adjtimex=124
arm_fadvise64_64=270 arm_sync_file_range=341 bdflush=134 bind=282 bpf=386 breakpoint=983041 brk=45
cacheflush=983042 cachestat=451 capget=184 capset=185 chdir=12 chmod=15 chown32=212 chown=182 chroot=61
clock_adjtime64=405 clock_adjtime=372 clock_getres=264 clock_getres_time64=406 clock_gettime64=403
clock_gettime=263 clock_nanosleep=265 clock_nanosleep_time64=407 clock_settime64=404 clock_settime=262 clone3=435
clone=120 close=6 close_range=436 connect=283 copy_file_range=391 creat=8 delete_module=129 dup2=63 dup3=358 dup=41
epoll_create1=357 epoll_create=250 epoll_ctl=251 epoll_pwait2=441 epoll_pwait=346 epoll_wait=252 eventfd2=356
eventfd=351 execve=11 execveat=387 exit=1 exit_group=248 faccessat2=439 faccessat=334 fallocate=352
fanotify_init=367 fanotify_mark=368 fchdir=133 fchmod=94 fchmodat2=452 fchmodat=333 fchown32=207 fchown=95
fchownat=325 fcntl64=221 fcntl=55 fdatasync=148 fgetxattr=231 finit_module=379 flistxattr=234 flock=143 fork=2
fremovexattr=237 fsconfig=431 fsetxattr=228 fsmount=432 fsopen=430 fspick=433 fstat64=197 fstat=108 fstatat64=327
fstatfs64=267 fstatfs=100 fsync=118 ftruncate64=194 ftruncate=93 futex=240 futex_requeue=456 futex_time64=422
futex_wait=455 futex_waitv=449 futex_wake=454 futimesat=326 get_mempolicy=320 get_robust_list=339 get_tls=983046
getcpu=345 getcwd=183 getdents64=217 getdents=141 getegid32=202 getegid=50 geteuid32=201 geteuid=49 getgid32=200
getgid=47 getgroups32=205 getgroups=80 getitimer=105 getpeername=287 getpgid=132 getpgrp=65 getpid=20 getppid=64
getpriority=96 getrandom=384 getresgid32=211 getresgid=171 getresuid32=209 getresuid=165 getrusage=77 getsid=147
getsockname=286 getsockopt=295 gettid=224 gettimeofday=78 getuid32=199 getuid=24 getxattr=229 getxattrat=464
init_module=128 inotify_add_watch=317 inotify_init1=360 inotify_init=316 inotify_rm_watch=318 io_cancel=247
io_destroy=244 io_getevents=245 io_pgetevents=399 io_pgetevents_time64=416 io_setup=243 io_submit=246
io_uring_enter=426 io_uring_register=427 io_uring_setup=425 ioctl=54 ioprio_get=315 ioprio_set=314 kcmp=378
kexec_file_load=401 kexec_load=347 keyctl=311 kill=37 landlock_add_rule=445 landlock_create_ruleset=444
landlock_restrict_self=446 lchown32=198 lchown=16 lgetxattr=230 link=9 linkat=330 listen=284 listmount=458
listxattr=232 listxattrat=465 llistxattr=233 lookup_dcookie=249 lremovexattr=236 lseek=19 lsetxattr=227
lsm_get_self_attr=459 lsm_list_modules=461 lsm_set_self_attr=460 lstat64=196 lstat=107 madvise=220
map_shadow_stack=453 mbind=319 membarrier=389 memfd_create=385 migrate_pages=400 mincore=219 mkdir=39 mkdirat=323
mknod=14 mknodat=324 mlock2=390 mlock=150 mlockall=152 mmap2=192 mount=21 mount_setattr=442 move_mount=429
move_pages=344 mprotect=125 mq_getsetattr=279 mq_notify=278 mq_open=274 mq_timedreceive=277
mq_timedreceive_time64=419 mq_timedsend=276 mq_timedsend_time64=418 mq_unlink=275 mremap=163 mseal=462 msgctl=304
msgget=303 msgrcv=302 msgsnd=301 msync=144 munlock=151 munlockall=153 munmap=91 name_to_handle_at=370 nanosleep=162
nfsservctl=169 nice=34 open=5 open_by_handle_at=371 open_tree=428 open_tree_attr=467 openat2=437 openat=322
pause=29 pciconfig_iobase=271 pciconfig_read=272 pciconfig_write=273 perf_event_open=364 personality=136
pidfd_getfd=438 pidfd_open=434 pidfd_send_signal=424 pipe2=359 pipe=42 pivot_root=218 pkey_alloc=395 pkey_free=396
pkey_mprotect=394 poll=168 ppoll=336 ppoll_time64=414 prctl=172 pread64=180 preadv2=392 preadv=361 prlimit64=369
process_madvise=440 process_mrelease=448 process_vm_readv=376 process_vm_writev=377 pselect6=335
pselect6_time64=413 ptrace=26 pwrite64=181 pwritev2=393 pwritev=362 quotactl=131 quotactl_fd=443 read=3
readahead=225 readlink=85 readlinkat=332 readv=145 reboot=88 recv=291 recvfrom=292 recvmmsg=365 recvmmsg_time64=417
recvmsg=297 remap_file_pages=253 removexattr=235 removexattrat=466 rename=38 renameat2=382 renameat=329
request_key=310 restart_syscall=0 rmdir=40 rseq=398 rt_sigaction=174 rt_sigpending=176 rt_sigprocmask=175
rt_sigqueueinfo=178 rt_sigreturn=173 rt_sigsuspend=179 rt_sigtimedwait=177 rt_sigtimedwait_time64=421
rt_tgsigqueueinfo=363 sched_get_priority_max=159 sched_get_priority_min=160 sched_getaffinity=242 sched_getattr=381
sched_getparam=155 sched_getscheduler=157 sched_rr_get_interval=161 sched_rr_get_interval_time64=423
sched_setaffinity=241 sched_setattr=380 sched_setparam=154 sched_setscheduler=156 sched_yield=158 seccomp=383
semctl=300 semget=299 semop=298 semtimedop=312 semtimedop_time64=420 send=289 sendfile64=239 sendfile=187
sendmmsg=374 sendmsg=296 sendto=290 set_mempolicy=321 set_mempolicy_home_node=450 set_robust_list=338
set_tid_address=256 set_tls=983045 setdomainname=121 setfsgid32=216 setfsgid=139 setfsuid32=215 setfsuid=138
setgid32=214 setgid=46 setgroups32=206 setgroups=81 sethostname=74 setitimer=104 setns=375 setpgid=57
setpriority=97 setregid32=204 setregid=71 setresgid32=210 setresgid=170 setresuid32=208 setresuid=164
setreuid32=203 setreuid=70 setrlimit=75 setsid=66 setsockopt=294 settimeofday=79 setuid32=213 setuid=23
setxattr=226 setxattrat=463 shmat=305 shmctl=308 shmdt=306 shmget=307 shutdown=293 sigaction=67 sigaltstack=186
signalfd4=355 signalfd=349 sigpending=73 sigprocmask=126 sigreturn=119 sigsuspend=72 socket=281 socketpair=288
splice=340 stat64=195 stat=106 statfs64=266 statfs=99 statmount=457 statx=397 swapoff=115 swapon=87 symlink=83
symlinkat=331 sync=36 syncfs=373 sysfs=135 sysinfo=116 syslog=103 tee=342 tgkill=268 timer_create=257
timer_delete=261 timer_getoverrun=260 timer_gettime64=408 timer_gettime=259 timer_settime64=409 timer_settime=258
timerfd_create=350 timerfd_gettime64=410 timerfd_gettime=354 timerfd_settime64=411 timerfd_settime=353 times=43
tkill=238 truncate64=193 truncate=92 ugetrlimit=191 umask=60 umount2=52 uname=122 unlink=10 unlinkat=328
unshare=337 uselib=86 userfaultfd=388 usr26=983043 usr32=983044 ustat=62 utimensat=348 utimensat_time64=412
utimes=269 vfork=190 vhangup=111 vmsplice=343 vserver=313 wait4=114 waitid=280 write=4 writev=146`
)
