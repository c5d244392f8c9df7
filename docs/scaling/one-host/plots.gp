# gnuplot plots.gp
set terminal svg size 720,420 font "sans,12" background rgb "white"
set offsets graph 0.04, graph 0.04, 0, 0
set grid ytics lc rgb "#dddddd"
set key top left
set style line 1 lc rgb "#1f77b4" pt 7 lw 2
set style line 2 lc rgb "#ff7f0e" pt 5 lw 2
set style line 3 lc rgb "#999999" dt 2 lw 1
set xlabel "ranks"
set xtics 1
set yrange [0:*]
set output "speed.svg"
set ylabel "new tokens a second"
stats "strong.dat" using 5 every ::0::0 nooutput name "S"
stats "weak.dat" using 5 every ::0::0 nooutput name "W"
plot "strong.dat" using 1:5:6 with yerrorlines ls 1 title "strong", "weak.dat" using 1:5:6 with yerrorlines ls 2 title "weak", \
     "strong.dat" using 1:(S_mean*$1) with lines ls 3 title "strong, ideal", "weak.dat" using 1:(W_mean*$1) with lines ls 3 title "weak, ideal"
set output "efficiency.svg"
set ylabel "efficiency (1: as many times as fast as there are ranks)"
set yrange [0:1.2]
plot "strong.dat" using 1:9:10 with yerrorlines ls 1 title "strong", "weak.dat" using 1:9:10 with yerrorlines ls 2 title "weak", 1 ls 3 title ""
set output "split.svg"
set ylabel "share of a rank's time, strong runs"
set offsets 0, 0, 0, 0
set style data histogram
set style histogram rowstacked
set style fill solid 0.9 border rgb "white"
set boxwidth 0.7
set yrange [0:1.3]
set key top horizontal
plot "strong.dat" using 11:xtic(1) title "compute", "" using 12 title "sampling", "" using 13 title "collectives", "" using 14 title "idle", "" using 15 title "host"
set key top left vertical
set offsets graph 0.04, graph 0.04, 0, 0
set output "latency.svg"
set xlabel "rows on a rank"
set xtics auto
set ylabel "decode step, ms"
set yrange [0:*]
plot "sweep.dat" using 1:2 with points ls 1 ps 1.2 title "measured", "sweep.dat" using 1:3 with lines ls 3 title "fitted"
set output "predicted.svg"
set xlabel "predicted seconds"
set ylabel "measured seconds"
set xrange [0:*]
plot "predicted.dat" using 1:2:3 with yerrorbars ls 1 title "all runs", "predicted.dat" using 1:($4 == 1 ? $2 : NaN) with points ls 2 ps 1.2 title "held out of the fit", x ls 3 title ""
